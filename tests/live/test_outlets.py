"""Answers leave whole, in order, and what is lost is counted."""

import errno
import os
import threading

import pytest

from skipconv_jax.live.outlets import LinesFile, Outlet
from tests.live.conftest import until


class Writer:
    """Remembers lines; fails, or hangs, while it is told to."""

    def __init__(self):
        self.lines, self.fails, self.open = [], False, threading.Event()
        self.open.set()

    def write(self, camera, line):
        self.open.wait(5)
        if self.fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.lines.append(line)

    def close(self):
        self.closed = True


def test_a_full_disk_loses_the_oldest_and_what_is_there_is_written_when_there_is_room():
    writer = Writer()
    outlet = Outlet("lines", writer, queue=10, retry=0.02)
    outlet.put("a", b"0")
    until(lambda: outlet.status().written == 1)
    writer.fails = True
    for number in range(1, 31):
        outlet.put("a", b"%d" % number)
    until(lambda: outlet.status().reason)
    status = outlet.status()
    assert status.reason == "No space left on device"
    assert (status.lost, status.waiting) == (20, 10)
    writer.fails = False
    until(lambda: outlet.status().written == 11)
    outlet.close()
    assert writer.lines == [b"0", *(b"%d" % number for number in range(21, 31))]
    assert outlet.status().reason == ""
    assert writer.closed


def test_a_line_that_is_being_written_is_not_lost():
    writer = Writer()
    outlet = Outlet("slow", writer, queue=1)
    writer.open.clear()
    outlet.put("a", b"first")
    for number in range(5):
        outlet.put("a", b"%d" % number)
    writer.open.set()
    until(lambda: outlet.status().written + outlet.status().lost == 6)
    outlet.close()
    status = outlet.status()
    assert status.written == len(writer.lines)
    assert status.lost == 6 - status.written
    assert writer.lines[-1] == b"4"


def test_what_can_not_be_written_at_the_end_is_counted():
    writer = Writer()
    writer.fails = True
    outlet = Outlet("lines", writer, retry=0.02)
    outlet.put("a", b"0")
    outlet.put("a", b"1")
    outlet.close()
    assert outlet.status().lost == 2


def test_lines_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"before\n")
    lines = LinesFile(path)
    write = os.write

    def fills_up(file, data):
        if len(data) < 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", fills_up)
    with pytest.raises(OSError, match="No space"):
        lines.write("a", b"a whole line\n")
    monkeypatch.undo()
    assert path.read_bytes() == b"before\n"
    lines.write("a", b"a whole line\n")
    lines.close()
    assert path.read_bytes() == b"before\na whole line\n"


def test_a_full_file_is_put_aside_and_old_ones_go(tmp_path):
    path = tmp_path / "out.jsonl"
    lines = LinesFile(path, rotate=10, keep=2)
    for number in range(8):
        lines.write("a", b"line%d\n" % number)
    lines.close()
    found = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert found == {
        "out.jsonl": b"line7\n",
        "out.jsonl.1": b"line6\n",
        "out.jsonl.2": b"line5\n",
    }
