"""Every code block of README.md and docs/ runs, and prints what the page says.

In each document the ```python blocks share one namespace and run in order. A ```text block is the output of
the block before it, but for the sign of zeros. In ```bash blocks, targets of the Makefile and subcommands of
`optlayer` must exist.
`<!-- skip: next if(...) -->` hides the reason to pass over a block: a peer that is not installed.
"""

import contextlib
import importlib.util
import io
import re
import shlex
import shutil
import subprocess
import unittest
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from optlayer import backends

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def run_python(example: Example) -> None:
    # Blank lines in front, so that tracebacks name the lines of the page.
    source = "\n" * (example.line + example.parsed.line_offset) + example.parsed
    code = compile(source, example.path, "exec", dont_inherit=True)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, example.namespace)
    example.namespace["_printed"] = printed.getvalue()


def compare_output(example: Example) -> None:
    printed = re.sub(r"-(?=0\.0*\b(?![.\d]))", "", example.namespace.get("_printed", ""))
    assert str(example.parsed).strip() == printed.strip()


def check_commands(example: Example) -> None:
    for line in str(example.parsed).splitlines():
        words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=.*", word)]
        if words[:1] == ["make"]:
            result = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
        elif words[:1] == ["optlayer"]:
            from typer.testing import CliRunner

            from optlayer.cli import app

            command = words[1:2] if words[1:] and not words[1].startswith("-") else []
            result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
            assert result.exit_code == 0, result.output
            unknown = {word for word in words if word.startswith("--") and f"{word} " not in result.output}
            assert not unknown, f"{line}: no option {unknown}"


def parser(language: str, evaluator: object) -> CodeBlockParser:
    return CodeBlockParser(language=language, evaluator=evaluator)  # type: ignore[arg-type]


SYBIL = Sybil(
    [
        parser("python", run_python),
        parser("text", compare_output),
        parser("bash", check_commands),
        SkipParser(),
    ]
)


@pytest.fixture(autouse=True)
def _default_torch_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A page may change torch's defaults, write files and register backends."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backends, "_added", {})
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_code_block_runs(page: Path) -> None:
    document = SYBIL.parse(page)
    document.namespace["installed"] = lambda name: importlib.util.find_spec(name) is not None
    for example in document.examples():
        try:
            example.evaluate()
        except unittest.SkipTest as reason:
            print(f"{page.name}, line {example.line}: passed over: {reason}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_fences_name_a_language_that_is_checked(page: Path) -> None:
    fences = re.findall(r"^```(\w*)", page.read_text(), flags=re.MULTILINE)[::2]
    assert set(fences) <= {"python", "text", "bash"}, fences


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    mkdocs = shutil.which("mkdocs") or str(ROOT / ".venv/bin/mkdocs")
    if not Path(mkdocs).exists():
        pytest.skip("mkdocs is not installed")
    command = [mkdocs, "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
