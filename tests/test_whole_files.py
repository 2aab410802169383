"""Files that the product writes appear whole or not at all, and only one module may write them."""

import ast
import os
import signal
import stat
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from skipconv_jax import whole_files
from skipconv_jax.streaming.sources import Source, VideoWriter

FOLDERS = ("skipconv_jax", "paper", "benchmarks")
# Folders of their own that are renamed when they are whole.
ELSEWHERE = {"synthetic_pose.py", "synthetic_traffic.py"}
WRITERS = {"write_text", "write_bytes", "savefig", "imwrite", "tofile", "save_file"}


def _writes(tree):
    """Calls that write over a path, each with the text of where it goes."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", "")
        where = [ast.unparse(a) for a in node.args]
        where += [ast.unparse(node.func.value)] if method else []
        # Functions of these names are wrappers, looked at where they are written.
        opens = name == "open" and any(w in ("'w'", "'wb'") for w in where)
        if (method and name in WRITERS) or opens:
            yield node.lineno, name, " ".join(where)


def test_nothing_else_writes_over_a_path(repository):
    """What is in the way when a process is killed is never half a file."""
    wrong, found = [], 0
    for folder in FOLDERS:
        for path in sorted((repository / folder).rglob("*.py")):
            for line, name, where in _writes(ast.parse(path.read_text())):
                found += 1
                if not ("whole_files" in where or "partial" in where or path.name in ELSEWHERE):
                    wrong.append(f"{path.relative_to(repository)}:{line} {name}")
    assert found > 30, "the search itself finds nothing"
    rows = ["skipconv_jax/commands/stream.py"]  # a line per frame, for those who look on
    assert [w for w in wrong if w.split(":")[0] not in rows] == [], "use skipconv_jax.whole_files"


def test_a_failed_write_leaves_what_was_there(tmp_path):
    file = tmp_path / "a.json"
    whole_files.write_text(file, "old é")

    def fail():
        with whole_files.writing(file) as partial:
            partial.write_text("half")
            assert file.read_text(encoding="utf-8") == "old é"
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert file.read_text(encoding="utf-8") == "old é"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


KILLED = """
import os, pathlib, signal, sys
from skipconv_jax import whole_files
with whole_files.writing(sys.argv[1]) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_what_was_there(tmp_path, repository):
    file = tmp_path / "config.json"
    whole_files.write_text(file, "{}")
    done = subprocess.run([sys.executable, "-c", KILLED, str(file)], cwd=repository, check=False)
    assert done.returncode == -signal.SIGKILL
    assert file.read_text() == "{}"
    (left,) = set(tmp_path.iterdir()) - {file}
    assert (left.name[0], left.suffix) == (".", ".json"), "hidden, of the same ending"
    whole_files.write_text(file, "new")
    assert file.read_text() == "new"


def test_links_and_pipes_stay_what_they_are(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a.txt", tmp_path / "a.txt"
    target.write_text("old")
    link.symlink_to(target)
    whole_files.write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    whole_files.write_text("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_video_is_there_when_it_is_whole(tmp_path):
    path = tmp_path / "a.mp4"
    frames = np.zeros((3, 32, 48, 3), np.uint8)
    with VideoWriter(path, Fraction(25)) as writer:
        for frame in frames:
            writer.write(frame)
            assert not path.exists()
    assert len(list(Source(path))) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    VideoWriter(tmp_path / "none.mp4", Fraction(25)).close()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"], "no frame, no file"
