"""What README and docs show runs as printed; what is long or needs data names things that exist."""

import functools
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib

import jax
import pytest

from skipconv_jax.commands.cli import COMMANDS
from tests.conftest import REPOSITORY

PAGES = sorted(
    path
    for path in (REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md"))
    if "results" not in path.parts
)
EXECUTED = re.compile(r"```python\n(.*?)```", re.DOTALL)
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
# Fragments that continue another page's program; tests/onnx/test_exports.py runs the last one's.
FRAGMENTS = {"docs/accelerators.md", "docs/policies.md", "docs/onnx.md"}


def _name(path):
    return path.relative_to(REPOSITORY).as_posix()


def _with(pattern):
    return [p for p in PAGES if pattern.search(p.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    "page", [p for p in _with(EXECUTED) if _name(p) not in FRAGMENTS], ids=_name
)
def test_the_programs_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # As a reader's process would run them.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for code in EXECUTED.findall(page.read_text(encoding="utf-8")):
            exec(compile(code, str(page), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out or "print(" not in code


def _flags(command):
    """Every flag that the command's --help names."""
    done = subprocess.run(
        [sys.executable, "-m", *command, "--help"], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"--(?:\[no\])?([\w.]+)", done.stdout + done.stderr))


@pytest.fixture(scope="module")
def flags():
    return functools.cache(_flags)


def _commands():
    for page in _with(SHELL):
        for block in SHELL.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                words = re.sub(r"\[(--[^]]*)\]", r"\1", line)  # [--optional]
                if parts := shlex.split(words, comments=True):
                    yield pytest.param(parts, id=f"{_name(page)}: {' '.join(parts)[:60]}")


@pytest.mark.parametrize("parts", list(_commands()))
def test_the_commands_exist(parts, flags):
    program, *rest = parts
    if program == "make":
        targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets
    elif program == "pip":
        extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\[(.*?)\]", " ".join(rest)):
            assert set(extra.split(",")) <= set(extras["optional-dependencies"])
    elif program in ("python", "skipconv"):
        _check_python(["-m", "skipconv_jax", *rest] if program == "skipconv" else rest, flags)
    elif program in ("cc", "ffmpeg"):
        files = [w for w in rest if w.endswith(".c")]
        assert all((REPOSITORY / f).exists() for f in files)
    else:
        assert (REPOSITORY / program).exists(), f"what is {program}?"


def _check_python(rest, flags):
    if rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), rest[1]
        command, given = tuple(rest[1:2]), rest[2:]
        if rest[1] == "skipconv_jax" and given[0] != "--help":
            assert given[0] in COMMANDS
            command, given = ("skipconv_jax", given[0]), given[1:]
    else:
        assert (REPOSITORY / rest[0]).exists(), rest[0]
        command, given = ("skipconv_jax", rest[0].removesuffix(".py")), rest[1:]
        if command[1] not in COMMANDS:
            return
    named = {w[2:].partition("=")[0] for w in given if w.startswith("--")} - {"help"}
    # What follows --config. is the config's own.
    wanted = {name for name in named if not name.startswith("config.")}
    if wanted:
        assert wanted <= flags(command)


@pytest.mark.parametrize(
    "notebook", sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb")), ids=_name
)
def test_the_notebooks_run(notebook):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = nbformat.read(notebook, as_version=4)
    for cell in cells.cells:
        # A tenth of the steps (a number before a rate): the pictures take minutes to learn.
        cell.source = re.sub(r"\b(\d+)0(,\s*\d+e-\d)", r"\1\2", cell.source)
    nbclient.NotebookClient(cells, timeout=900).execute()


def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "guides" / "deployment.html").exists()
