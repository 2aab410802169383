"""Cameras over worker processes: who has what, and that nothing is lost or counted twice."""

import collections
import functools
import json
import os
import signal

import pytest

from skipconv_jax.live.config import CameraPart
from skipconv_jax.live.fleet import Fleet
from skipconv_jax.live.outlets import Outlet
from skipconv_jax.live.placing import moved, placed
from skipconv_jax.live.station import Station, Waiting
from skipconv_jax.live.workers import Local
from tests.live.conftest import until
from tests.live.dying import Dying
from tests.live.test_outlets import Writer


def test_streams_go_where_there_is_least_to_do():
    costs = {"a": 0.5, "b": 0.3, "c": 0.3, "d": 0.1}
    assert placed(costs, {0: 0.0, 1: 0.0}) == {"a": 0, "b": 1, "c": 1, "d": 0}
    assert set(placed(costs, {0: 9.0, 1: 0.0}).values()) == {1}


def test_a_new_worker_takes_its_share_and_no_more():
    costs = {"a": 0.4, "b": 0.4, "c": 0.1, "d": 0.1}
    assert moved(costs, dict.fromkeys(costs, 0), 1, {0}) == ["a", "c"]
    assert moved({"a": 0.9}, {"a": 0}, 1, {0}) == [], "one stream is not sent to and fro"
    assert moved({}, {}, 1, set()) == []


def test_answers_wait_until_they_are_confirmed():
    waiting = Waiting(3)
    for number in range(2):
        waiting.put("a", b"%d" % number)
    first = waiting.take(0, 0.0)
    assert [line for _, line in first.lines] == [b"0", b"1"]
    assert waiting.take(0, 0.0) == first, "a fetch whose answer was lost can be made again"
    assert waiting.take(first.last, 0.0).lines == []
    for number in range(5):
        waiting.put("a", b"%d" % number)
    after = waiting.take(first.last, 0.0)
    assert ([line for _, line in after.lines], after.lost) == ([b"2", b"3", b"4"], 2)


def _parts(clip, count):
    return [
        CameraPart(name=f"c{n}", address=str(clip), loop=True, cuts=False, drop="wait")
        for n in range(count)
    ]


def _rows(writer):
    found = collections.defaultdict(list)
    for line in list(writer.lines):
        row = json.loads(line)
        found[row["camera"]].append(row)
    return found


def test_streams_of_a_killed_worker_go_on_elsewhere_and_no_frame_comes_twice(clip, tmp_path):
    writer = Writer()
    made = functools.partial(Local, Station, functools.partial(Dying, tmp_path, 0), 1)
    fleet = Fleet(_parts(clip, 4), made, 2, [Outlet("test", writer, queue=100_000)])
    fleet.start()
    until(lambda: all(len(_rows(writer)[n]) > 5 for n in fleet.names), 60)
    until(lambda: {s.owner.number for s in fleet._streams.values() if s.owner} == {0, 1}, 60)
    lost = [name for name, s in fleet._streams.items() if s.owner.number == 0]
    before = {name: len(_rows(writer)[name]) for name in fleet.names}
    pid = next(m.worker.pid for m in fleet._members if m.number == 0)
    os.kill(pid, signal.SIGKILL)
    until(lambda: all(len(_rows(writer)[n]) > before[n] + 5 for n in fleet.names), 60)
    until(lambda: fleet.figures()["c0"].camera.state == "live")
    fleet.stop()
    rows, figures = _rows(writer), fleet.figures()
    for name, own in rows.items():
        numbers = [row["frame"] for row in own]
        assert numbers == list(range(len(numbers))), "in order, each once"
        assert figures[name].answered == len(own)
        assert figures[name].resets == sum("reset" in row for row in own)
    for name in lost:
        (again,) = [row for row in rows[name] if "its worker died" in row.get("reset", "")]
        assert "connected" in again["reset"]
        assert again["share"] == 1.0, "a reference frame"
    assert fleet.died == 1
    assert lost
    assert len(lost) < 4


def test_files_that_are_over_end_the_fleet(clip, tmp_path):
    writer = Writer()
    parts = [CameraPart(name="a", address=str(clip), pace=False, drop="wait")]
    made = functools.partial(Local, Station, functools.partial(Dying, tmp_path, 0), 1)
    fleet = Fleet(parts, made, 1, [Outlet("test", writer)])
    fleet.start()
    assert fleet.wait(60)
    fleet.stop()
    assert [row["frame"] for row in _rows(writer)["a"]] == list(range(20))
    assert fleet.figures()["a"].answered == 20


def test_processes_must_be_a_number_of_them(tmp_path, capsys):
    from skipconv_jax.commands import cli

    file = tmp_path / "cameras.yaml"
    file.write_text("network: {onnx: a.onnx}\ncameras: [{name: a, address: a.mp4}]\n")
    assert cli.main(["serve", str(file), "--processes", "-1"]) == 1
    assert "`processes` (=-1) must be 0 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["serve", str(file), "--processes", "many"])
