"""The shape of the code: imports point downward only, and each idea has its place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "optlayer"

# From the bottom up; a module imports from its own level or below. Imports inside of functions are exempt from the
# order only where LAZY names them: they break a circle on purpose.
LEVELS = (
    ("problem", "point", "settings"),
    ("kkt",),
    ("solution", "explain"),
    ("backends",),
    ("call", "implicit", "ops"),
    ("solve",),
    ("optlayer",),  # the public names
    ("nn", "compat"),
    ("experiments",),
    ("cli",),
)
LAZY = {("solution", "explain")}


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
    if own == "optlayer":
        return
    for other in imports(path):
        top = (own.split(".")[0], other.split(".")[0])
        if top in LAZY:
            continue
        assert level(other) <= level(own), f"{own} imports {other}, which is above it"


def test_autograd_lives_in_one_file() -> None:
    users = {module_of(path) for path in PACKAGE.rglob("*.py") if "autograd.Function" in path.read_text()}
    assert users <= {"implicit"}


def test_kernels_know_neither_torch_nor_python() -> None:
    for path in (PACKAGE / "kernels").glob("*.h"):
        includes = [line for line in path.read_text().splitlines() if line.startswith("#include")]
        assert not any("torch" in line or "Python" in line or "ATen" in line for line in includes), path.name
