"""Kernels compiled at run time: find NVRTC and the driver, compile from memory, cache by content, load, launch.

NVRTC comes with PyTorch's CUDA wheels (or `pip install nvidia-cuda-nvrtc`), the driver with the GPU: no toolkit is
needed. Everything goes through ctypes; a launch is one call of the driver on a stream that the caller names.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
ENTRY = "entry.cu"

# Attributes of the driver's interface (cuda.h).
_MULTIPROCESSORS, _SHARED_MULTIPROCESSOR, _SHARED_BLOCK = 16, 81, 97
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_MAX_DYNAMIC_SHARED, _REGISTERS, _LOCAL_BYTES = 8, 4, 3


class CudaError(RuntimeError):
    """A call of NVRTC or of the driver failed."""


# ---- NVRTC ---------------------------------------------------------------------------------------------------------


def _package_folders() -> Iterator[Path]:
    """Folders of Python packages that carry NVRTC."""
    wheels = ("cu13/lib", "cu13/bin/x86_64", "cuda_nvrtc/lib", "cuda_nvrtc/bin")
    for package, below in (("nvidia", wheels), ("torch", ("lib",))):
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            for folder in below:
                yield Path(root) / folder


def _candidates() -> Iterator[str]:
    """Where NVRTC may be, best first; the environment variable OPTLAYER_NVRTC names a file."""
    if named := os.environ.get("OPTLAYER_NVRTC"):
        yield named
        return
    pattern = "nvrtc64_*_0.dll" if sys.platform == "win32" else "libnvrtc*.so*"
    for folder in _package_folders():
        for path in sorted(folder.glob(pattern), reverse=True):
            if "builtins" not in path.name and ".alt." not in path.name:
                yield str(path)
    yield from ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
    yield from sorted((str(path) for path in Path("/usr/local/cuda").glob("lib64/libnvrtc.so.*")), reverse=True)


def _open(path: str) -> ctypes.CDLL:
    """The library; its builtins first, which it asks for by name alone."""
    for builtins in Path(path).parent.glob("libnvrtc-builtins.so*") if os.sep in path else ():
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(path)


class Compiler:
    """NVRTC: source and headers in memory to machine code."""

    def __init__(self) -> None:
        errors = []
        for path in _candidates():
            try:
                self._library = _open(path)
            except OSError as error:
                errors.append(str(error))
                continue
            self.path = path
            break
        else:
            raise CudaError(
                "NVRTC, the run-time compiler, was not found: install PyTorch for CUDA, or `pip install "
                f"nvidia-cuda-nvrtc`, or set OPTLAYER_NVRTC to the library ({errors[0] if errors else 'none'})"
            )
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = (major.value, minor.value)

    def _check(self, code: int) -> None:
        if code:
            raise CudaError(f"NVRTC: {self._library.nvrtcGetErrorString(code).decode()}")

    def compile(self, source: str, name: str, headers: dict[str, str], options: list[str]) -> bytes:
        """Machine code (cubin) of `source`.

        Args:
            source: the CUDA C++ text.
            name: its name in messages.
            headers: text of each header that may be included, by name.
            options: NVRTC's options; among them --gpu-architecture=sm_XX.

        Raises:
            CudaError: with the compiler's log.
        """
        nvrtc, program = self._library, ctypes.c_void_p()
        names = (ctypes.c_char_p * len(headers))(*(key.encode() for key in headers))
        texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
        self._check(nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), name.encode(), len(headers), texts, names
        ))
        try:
            words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            if nvrtc.nvrtcCompileProgram(program, len(options), words):
                size = ctypes.c_size_t()
                self._check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
                log = ctypes.create_string_buffer(size.value)
                self._check(nvrtc.nvrtcGetProgramLog(program, log))
                raise CudaError(f"NVRTC {self.version} could not compile {name} with {options}:\n{log.value.decode()}")
            size = ctypes.c_size_t()
            self._check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
            code = ctypes.create_string_buffer(size.value)
            self._check(nvrtc.nvrtcGetCUBIN(program, code))
            return code.raw
        finally:
            nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@functools.cache
def compiler() -> Compiler | str:
    """NVRTC, or why there is none."""
    try:
        return Compiler()
    except CudaError as error:
        return str(error)


@functools.cache
def sources() -> dict[str, str]:
    """The kernels' files, which are part of the package."""
    paths = (path for path in sorted(KERNELS.iterdir()) if path.suffix in (".h", ".cu"))
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


# ---- cache ---------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/optlayer."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "optlayer"


def _ours(status: os.stat_result) -> bool:
    """Whether a file or folder is this user's, and nobody else may change it: what a cache holds will be run."""
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


_CHECKSUM = hashlib.sha256().digest_size


def _read(path: Path) -> bytes | None:
    """The machine code in an entry of the cache, which begins with its checksum; None for one not to be trusted."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            if _ours(os.stat(path.parent)) and _ours(os.fstat(handle)):
                content = file.read()
                checksum, code = content[:_CHECKSUM], content[_CHECKSUM:]
                if hashlib.sha256(code).digest() == checksum:
                    return code
    return None


def _publish(path: Path, code: bytes) -> None:
    """Write by rename, so that no process ever reads half a file; a cache that cannot be written is done without."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _ours(os.stat(path.parent)):
            return
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def build(defines: dict[str, str | int], architecture: str) -> bytes:
    """Machine code of the kernels for one architecture, from the cache or compiled now.

    Args:
        defines: the macros that entry.cu asks for.
        architecture: for example "sm_90".

    Raises:
        CudaError: when there is no NVRTC, or the code does not compile.
    """
    nvrtc = compiler()
    if isinstance(nvrtc, str):
        raise CudaError(nvrtc)
    options = [
        f"--gpu-architecture={architecture}", "--std=c++17", "--device-as-default-execution-space",
        *(f"-D{name}={value}" for name, value in sorted(defines.items())),
    ]
    # (Without --Ofast-compile: it compiles in 2 s in place of 15, but what should be registers stays in memory, and the
    # kernels take 1.4 to 1.7 times as long.)
    files = sources()
    digest = hashlib.sha256(repr((options, nvrtc.version, sorted(files.items()))).encode()).hexdigest()
    path = cache_folder() / f"{digest}.cubin"
    if (code := _read(path)) is not None:
        return code
    headers = {name: text for name, text in files.items() if name != ENTRY}
    code = nvrtc.compile(files[ENTRY], ENTRY, headers, options)
    _publish(path, code)
    return code


# ---- driver --------------------------------------------------------------------------------------------------------


class Driver:
    """The few functions of libcuda that a launch needs; the context is torch's."""

    def __init__(self) -> None:
        name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        try:
            self._library = ctypes.CDLL(name)
        except OSError as error:
            raise CudaError(f"the NVIDIA driver was not found ({error})") from None

    def call(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            raise CudaError(f"{function}: {(text.value or b'error').decode()} ({code})")

    def attribute(self, device: int, which: int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value


@functools.cache
def driver() -> Driver | str:
    """The driver, or why there is none."""
    try:
        return Driver()
    except CudaError as error:
        return str(error)


class Device:
    """What planning needs to know of a GPU."""

    def __init__(self, index: int) -> None:
        cuda = _driver()
        handle = ctypes.c_int()
        cuda.call("cuDeviceGet", ctypes.byref(handle), index)
        major, minor = (cuda.attribute(handle.value, which) for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR))
        self.index, self.architecture = index, f"sm_{major}{minor}"
        self.multiprocessors = cuda.attribute(handle.value, _MULTIPROCESSORS)
        self.shared_block = cuda.attribute(handle.value, _SHARED_BLOCK)
        self.shared_multiprocessor = cuda.attribute(handle.value, _SHARED_MULTIPROCESSOR)


def _driver() -> Driver:
    found = driver()
    if isinstance(found, str):
        raise CudaError(found)
    return found


@functools.cache
def device(index: int) -> Device:
    """The GPU with torch's index (as CUDA_VISIBLE_DEVICES numbers it)."""
    return Device(index)


class Kernel:
    """A function of a loaded module."""

    def __init__(self, module: ctypes.c_void_p, name: str) -> None:
        self._function = ctypes.c_void_p()
        self._shared = 0
        self.name = name
        _driver().call("cuModuleGetFunction", ctypes.byref(self._function), module, name.encode())

    def _reserve(self, shared: int) -> None:
        if shared > self._shared:
            _driver().call("cuFuncSetAttribute", self._function, _MAX_DYNAMIC_SHARED, shared)
            self._shared = shared

    def resources(self) -> dict[str, int]:
        """Registers and bytes of local memory (spills and arrays) of a thread."""
        value, out = ctypes.c_int(), {}
        for key, which in (("registers", _REGISTERS), ("local_bytes", _LOCAL_BYTES)):
            _driver().call("cuFuncGetAttribute", ctypes.byref(value), which, self._function)
            out[key] = value.value
        return out

    def resident(self, threads: int, shared: int) -> int:
        """Blocks that fit on a multiprocessor at a time."""
        self._reserve(shared)
        value = ctypes.c_int()
        _driver().call(
            "cuOccupancyMaxActiveBlocksPerMultiprocessor",
            ctypes.byref(value), self._function, threads, ctypes.c_size_t(shared),
        )
        return value.value

    def launch(
        self, blocks: int, threads: int, shared: int, stream: int, *parameters: ctypes.Array[ctypes.c_char]
    ) -> None:
        """Queue the kernel on `stream`; parameters are structs, copied before this returns."""
        self._reserve(shared)
        pointers = (ctypes.c_void_p * len(parameters))(*(ctypes.addressof(parameter) for parameter in parameters))
        _driver().call(
            "cuLaunchKernel", self._function, blocks, 1, 1, threads, 1, 1, shared, ctypes.c_void_p(stream),
            pointers, None,
        )


Defines = tuple[tuple[str, str | int], ...]
_lock = threading.Lock()
_modules: dict[tuple[Defines, int], ctypes.c_void_p] = {}
_kernels: dict[tuple[str, Defines, int], Kernel] = {}


def kernels(index: int, *wanted: tuple[str, Defines]) -> list[Kernel]:
    """Kernels by name and macros, in the current context, that of GPU `index`; new ones compile side by side."""
    keys = [(name, defines, index) for name, defines in wanted]
    if not all(key in _kernels for key in keys):
        with _lock:
            new = [key[1:] for key in keys if key[1:] not in _modules]
            architecture = device(index).architecture
            with ThreadPoolExecutor() as workers:
                codes = workers.map(lambda key: build(dict(key[0]), architecture), new)
            for built, code in zip(new, codes, strict=True):
                module = ctypes.c_void_p()
                _driver().call("cuModuleLoadData", ctypes.byref(module), code)
                _modules[built] = module
            for key in keys:
                if key not in _kernels:
                    _kernels[key] = Kernel(_modules[key[1:]], key[0])
    return [_kernels[key] for key in keys]
