"""The shape of the code: imports point downward only, and each idea has its place."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "optlayer"

# From the bottom up; a module imports from below, and from its own level what does not import it in turn. Imports
# inside of functions count as well, but for those in LAZY, which break a circle on purpose.
LEVELS = (
    ("core",),
    ("_torch",),
    ("sparse",),
    ("matrices",),
    ("problem", "point"),
    ("kkt",),
    ("explain",),
    ("solution",),
    ("backends",),
    ("adjoint",),
    ("call",),
    ("ops",),
    ("autograd",),
    ("solve",),
    ("optlayer",),  # the public names
    ("nn", "compat"),
    ("experiments",),
    ("cli",),
    ("__main__",),
)
LAZY = {
    ("backends.base", "backends.reference"),  # the defaults of the contract are the reference's
    ("backends.base", "backends.cpu"),  # who judges the answers of other solvers
    ("optlayer", "nn"),
    ("optlayer", "compat"),
}


def level(module: str) -> int:
    top = module.split(".")[0]
    for i, names in enumerate(LEVELS):
        if top in names:
            return i
    raise AssertionError(f"{module} has no level: add it to LEVELS in this test, and to docs/architecture.md")


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "optlayer"


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, relative to the package; the package itself is `optlayer`."""
    own, found = module_of(path), set()
    folder = list(path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1]
            stem = ["optlayer", *base, *(node.module or "").split(".")]
            names = [".".join([*filter(None, stem), alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] != "optlayer":
                continue
            parts = name.split(".")[1:]
            first = parts[0] if parts else ""
            known = (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").exists()
            # `from optlayer import Settings` asks the package for a public name
            found.add(".".join(parts) if first and known and parts != ["solve"] else "optlayer")
    return found - {own}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_of)
def test_imports_point_downward(path: Path) -> None:
    own = module_of(path)
    for other in imports(path):
        if own != "optlayer" and not lazy(own, other):
            assert level(other) <= level(own), f"{own} imports {other}, which is above it"


def lazy(own: str, other: str) -> bool:
    return any(own == a and (other == b or other.startswith(f"{b}.")) for a, b in LAZY)


def test_no_circles() -> None:
    """Among the modules of one level too."""
    modules = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    graph = {}
    for own, path in modules.items():
        found = set()
        for name in imports(path):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name and not lazy(own, name) and own not in (name, "optlayer"):
                found.add(name)
        graph[own] = found
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"a circle: {' → '.join((*trail, module))}"
        if module not in done:
            for other in graph[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_core_needs_no_torch() -> None:
    """A second front end could stand on it: it is imported with torch blocked."""
    code = f"""
import importlib, sys, types
package = types.ModuleType("optlayer")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules |= {{"optlayer": package, "torch": None, "numpy": None}}
for name in {sorted(path.stem for path in (PACKAGE / "core").glob("*.py"))!r}:
    importlib.import_module("optlayer.core." + name if name != "__init__" else "optlayer.core")
from optlayer.core import native, settings, status, structure
structure.Structure(2, 0, 3, (4, 5), (structure.DENSE,) * 3, lower=True, upper=False, dtype="float64", device="cpu")
native.Core(["baseline"])
print(status.Status.SOLVED, settings.Settings().max_iterations)
"""
    if not any((PACKAGE / "lib").glob("core_baseline*")):
        code = code.replace('native.Core(["baseline"])', "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "SOLVED"


def test_autograd_lives_in_one_file() -> None:
    users = {module_of(path) for path in PACKAGE.rglob("*.py") if "(torch.autograd.Function)" in path.read_text()}
    assert users == {"autograd"}


def test_private_parts_of_torch_in_one_file() -> None:
    private = re.compile(r"torch\._C|torch\._guards|torch\._subclasses|forward_ad\._|torch\._dynamo|\._is_view")
    users = {module_of(path) for path in PACKAGE.rglob("*.py") if private.search(path.read_text())}
    assert users == {"_torch"}


def test_addresses_are_taken_in_one_file() -> None:
    users = {module_of(path) for path in PACKAGE.rglob("*.py") if "data_ptr()" in path.read_text()}
    assert users == {"backends.args"}


def test_nothing_of_a_backend_is_found_by_its_name() -> None:
    for path in (*PACKAGE.glob("*.py"), PACKAGE / "backends" / "__init__.py", PACKAGE / "backends" / "base.py"):
        assert path.name == "cli.py" or "hasattr(" not in path.read_text(), path.name


def test_kernels_know_neither_torch_nor_python() -> None:
    for path in (PACKAGE / "kernels").glob("*.h"):
        includes = [line for line in path.read_text().splitlines() if line.startswith("#include")]
        assert not any("torch" in line or "Python" in line or "ATen" in line for line in includes), path.name
