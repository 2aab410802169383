"""Recorded videos: a row for every frame, once, whoever dies; the same rows as without a death."""

import functools
import json
import os

import pytest

from skipconv_jax.live.batch import Rules, VideoWorker, outputs, run, same_run
from skipconv_jax.live.journal import BusyError, Journal
from skipconv_jax.live.workers import CallFailed, Local, WorkerDied
from tests.live.conftest import write_clip
from tests.live.dying import Dying

FRAMES = 60
RULES = Rules(reset_every=25)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    made = [folder / f"{name}.mp4" for name in "ab"]
    for number, path in enumerate(made):
        write_clip(path, frames=FRAMES, size=(96 - 32 * number, 128))
    return [str(path) for path in made]


@pytest.fixture(scope="module")
def expected(videos, tmp_path_factory):
    """What a run that nobody kills writes."""
    folder = tmp_path_factory.mktemp("expected")
    worker = VideoWorker(functools.partial(Dying, folder, 0), RULES)
    made = {}
    for video, path in outputs(videos, folder).items():
        assert worker.run(video, str(path)) == (FRAMES, pytest.approx((3 + 0.25 * 57) / 60))
        made[video] = path.read_bytes()
    rows = [json.loads(line) for line in made[videos[0]].splitlines()]
    assert [row["frame"] for row in rows] == list(range(FRAMES))
    resets = {row["frame"]: row["reset"] for row in rows if "reset" in row}
    assert resets == {0: "begin", 25: "due", 50: "due"}
    return made


def _written(videos, folder):
    return {video: path.read_bytes() for video, path in outputs(videos, folder).items()}


@pytest.mark.parametrize("cut", ["between rows", "in a row"])
def test_a_journal_goes_on_with_the_rows_of_a_run_without_a_kill(videos, expected, tmp_path, cut):
    (video, *_), path = videos, outputs(videos, tmp_path)[videos[0]]
    end = expected[video].index(b'"frame":40') - 1
    part = path.with_name(path.name + ".part")
    part.write_bytes(expected[video][: end + (20 if cut == "in a row" else 0)])
    worker = VideoWorker(functools.partial(Dying, tmp_path, 0), RULES)
    assert worker.run(video, str(path))[0] == FRAMES
    assert path.read_bytes() == expected[video]
    assert not part.exists()


def test_a_journal_is_written_by_one_process_and_holds_rows_in_order(tmp_path):
    journal = Journal(tmp_path / "a.jsonl")
    journal.append({"frame": 0})
    with pytest.raises(BusyError, match="must be written by one process"):
        Journal(tmp_path / "a.jsonl", patience=0.1)
    with pytest.raises(ValueError, match=r"`row` \(=of frame 2\) must be of frame 1"):
        journal.append({"frame": 2})
    journal.close()
    (tmp_path / "b.jsonl.part").write_bytes(b'{"frame":3}\n')
    with pytest.raises(ValueError, match="must hold the rows of frames 0, 1, 2"):
        Journal(tmp_path / "b.jsonl")


def test_a_worker_that_dies_costs_no_row_and_repeats_none(videos, expected, tmp_path):
    making = functools.partial(Dying, tmp_path, 7)
    outcomes = run(videos, tmp_path, lambda: Local(VideoWorker, making, RULES), workers=1)
    assert [outcome.rows for outcome in outcomes] == [FRAMES, FRAMES]
    assert sum(outcome.died for outcome in outcomes) == 1
    assert _written(videos, tmp_path) == expected
    # All is done: nobody is started for it.
    again = run(videos, tmp_path, lambda: pytest.fail("a worker was started"), workers=1)
    assert [outcome.rows for outcome in again] == [FRAMES, FRAMES]


def test_a_video_that_kills_every_worker_is_given_up_and_one_that_fails_is_said(videos, tmp_path):
    (tmp_path / "no.mp4").write_text("no video")
    given = [videos[0], str(tmp_path / "no.mp4")]
    making = functools.partial(Dying, tmp_path, 7, times=9)
    killed, broken = run(given, tmp_path, lambda: Local(VideoWorker, making, RULES), workers=1)
    assert killed.died == 3
    assert "3 workers died on it" in killed.error
    assert broken.died == 0
    assert "VideoError" in broken.error


def test_a_worker_says_what_its_object_raised_and_when_it_is_gone():
    worker = Local(int, "no number")
    with pytest.raises(CallFailed, match="invalid literal"):
        worker.call("bit_length")
    worker.stop()
    worker = Local(int, "5")
    assert worker.call("bit_length") == 3
    os.kill(worker.pid, 9)
    with pytest.raises(WorkerDied, match="-9"):
        worker.call("bit_length")
    worker.stop()


def test_a_folder_is_of_one_network_and_every_video_has_a_file(tmp_path):
    same_run(tmp_path, {"onnx": "a", "block": 8})
    same_run(tmp_path, {"onnx": "a", "block": 8})
    with pytest.raises(ValueError, match="was begun with block 8, not 4"):
        same_run(tmp_path, {"onnx": "a", "block": 4})
    with pytest.raises(ValueError, match=r"a\.mp4\.jsonl"):
        outputs(["x/a.mp4", "y/a.mp4"], tmp_path)
