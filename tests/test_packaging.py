"""What a user who installs the package may rely on."""

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import optlayer

ROOT = Path(__file__).parents[1]
OPTIONAL = ["jax", "lightning_fabric", "matplotlib", "qpsolvers", "qpth", "rich", "scipy", "typer"]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_takes_less_than_50_ms_beyond_torch() -> None:
    code = """if True:
        import time, torch
        start = time.process_time()  # of the processor: other processes have no say
        import optlayer
        print(time.process_time() - start)
    """
    best = min(float(run(code)) for _ in range(5))
    print(f"import optlayer: {1000 * best:.1f} ms beyond torch")
    assert best < 0.05


def test_no_optional_dependency_is_imported_early() -> None:
    code = "import torch, sys; before = set(sys.modules); import optlayer; print(*set(sys.modules) - before)"
    assert not {name.split(".")[0] for name in run(code).split()} & set(OPTIONAL)


def test_package_works_without_optional_dependencies() -> None:
    code = f"""if True:
        import sys
        sys.modules.update(dict.fromkeys({OPTIONAL}))        # importing them fails from now on
        import torch, optlayer
        import optlayer.nn, optlayer.compat.qpth
        print(optlayer.solve(torch.eye(1), -torch.ones(1)).z.item())
    """
    assert abs(float(run(code)) - 1) < 1e-5


def test_types_and_kernels_are_shipped() -> None:
    package = files("optlayer")
    assert package.joinpath("py.typed").is_file()
    assert package.joinpath("kernels", "args.h").is_file()


def test_version_is_written_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", optlayer.__version__)
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert "\nversion =" not in pyproject
    assert 'dynamic = ["version"]' in pyproject
