"""Preparing datasets: reports, kills at any point, resuming, reading back."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from skipconv_jax.data import jhmdb, prepare
from skipconv_jax.data.synthetic_pose import clip_name


def contents(path):
    """Every clip as it is read back, in order: a new process may order the features anew."""
    read = {}
    for split in (1, 2, 3):
        for part in ("train", "test"):
            clips = jhmdb.load(path.parents[2], part, split, "synthetic")
            read[split, part] = [
                (
                    clip.name,
                    [hashlib.sha256(clip.encoded(t)).hexdigest() for t in range(clip.length)],
                    clip.joints.tolist(),
                    clip.visible.tolist(),
                    clip.boxes.tolist(),
                )
                for clip in clips
            ]
    return read


@pytest.fixture(scope="module")
def whole(synthetic_root, tmp_path_factory):
    """What an uninterrupted run writes."""
    path = prepare.prepare("jhmdb", synthetic_root, tmp_path_factory.mktemp("whole"), quiet=True)
    return contents(path)


@pytest.fixture
def copy(synthetic_root, tmp_path):
    shutil.copytree(synthetic_root, tmp_path / "source")
    return tmp_path / "source"


def report(data_dir, config="synthetic", dataset="jhmdb"):
    return json.loads((data_dir / dataset / f"{config}.report.json").read_text())


def _count(monkeypatch, calls):
    original = prepare.JhmdbFolder.clip

    def clip(self, name, decode_all=False):
        if decode_all:
            calls.append(name)
        return original(self, name, decode_all)

    monkeypatch.setattr(prepare.JhmdbFolder, "clip", clip)


def test_damage_is_reported_and_nothing_is_written_until_it_is_mended(
    copy, synthetic_root, tmp_path, whole, monkeypatch
):
    broken, frame = clip_name(3), "00006.png"
    path = copy / "Rename_Images" / broken / frame
    path.write_bytes(path.read_bytes()[:500])
    (copy / "joint_positions" / clip_name(5) / "joint_positions.mat").unlink()
    data_dir = tmp_path / "tfds"
    assert prepare.prepare("jhmdb", copy, data_dir, quiet=True) is None
    found = report(data_dir)
    assert (found["expected"], found["whole"], found["frames"]) == (16, 14, 140)
    files = sorted(problem["file"] for problem in found["problems"])
    assert files == [
        f"Rename_Images/{broken}/{frame}",
        f"joint_positions/{clip_name(5)}/joint_positions.mat",
    ]
    assert not list(data_dir.rglob("*.array_record*"))
    for name in (broken, clip_name(5)):
        for kind in ("Rename_Images", "joint_positions"):
            shutil.rmtree(copy / kind / name)
            shutil.copytree(synthetic_root / kind / name, copy / kind / name)
    calls = []
    _count(monkeypatch, calls)
    written = prepare.prepare("jhmdb", copy, data_dir, quiet=True)
    assert set(calls) == {broken, clip_name(5)}  # the others were not decoded again
    assert contents(written) == whole
    assert report(data_dir)["problems"] == []


def test_partial_writes_what_is_whole(copy, tmp_path):
    (copy / "puppet_mask" / clip_name(0) / "puppet_mask.mat").unlink()
    assert prepare.prepare("jhmdb", copy, tmp_path / "tfds", partial=True, quiet=True)
    names = {
        name
        for part in ("train", "test")
        for name in jhmdb.load(tmp_path / "tfds", part, 1, "synthetic").names
    }
    assert len(names) == 15
    assert clip_name(0) not in names


class Stop(BaseException):
    """Like a kill: no handler for errors catches it."""


@pytest.mark.parametrize("after", [0, 7, 15])
def test_an_interruption_while_writing_leaves_nothing_and_a_second_run_is_whole(
    synthetic_root, tmp_path, whole, monkeypatch, after
):
    original, seen = jhmdb.Jhmdb._generate_examples, []

    def interrupted(self, *args):
        for example in original(self, *args):
            if len(seen) == after:
                raise Stop
            seen.append(example)
            yield example

    monkeypatch.setattr(jhmdb.Jhmdb, "_generate_examples", interrupted)
    with pytest.raises(Stop):
        prepare.prepare("jhmdb", synthetic_root, tmp_path, quiet=True)
    assert not list(tmp_path.rglob("[0-9].[0-9].[0-9]/metadata.json"))
    with pytest.raises(ValueError, match="`data_dir`"):
        jhmdb.load(tmp_path, "train", 1, "synthetic")
    monkeypatch.undo()
    calls = []
    _count(monkeypatch, calls)
    assert contents(prepare.prepare("jhmdb", synthetic_root, tmp_path, quiet=True)) == whole
    assert calls == []
    assert not list((tmp_path / "jhmdb" / "synthetic").glob("incomplete*"))


def test_killed_at_random_moments_it_ends_up_the_same(synthetic_root, tmp_path, whole):
    command = [sys.executable, "-m", "skipconv_jax.data.prepare", "jhmdb"]
    command += ["--manual_dir", str(synthetic_root), "--data_dir", str(tmp_path)]
    journal = tmp_path / "jhmdb" / "synthetic.verified.jsonl"
    chance = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        # Importing takes most of the time: wait until the work has begun.
        while not journal.is_file() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.25))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    path = prepare.prepare("jhmdb", synthetic_root, tmp_path, quiet=True)
    assert contents(path) == whole


def test_a_journal_line_cut_short_is_passed_over(synthetic_root, tmp_path, monkeypatch):
    assert prepare.prepare("jhmdb", synthetic_root, tmp_path, quiet=True)
    journal = tmp_path / "jhmdb" / "synthetic.verified.jsonl"
    journal.write_text(journal.read_text()[:-40])
    calls = []
    _count(monkeypatch, calls)
    assert prepare.prepare("jhmdb", synthetic_root, tmp_path, quiet=True)
    assert len(calls) == 1


def test_a_dataset_that_differs_from_the_files_is_refused(copy, synthetic_root, tmp_path):
    assert prepare.prepare("jhmdb", synthetic_root, tmp_path / "tfds", quiet=True)
    (copy / "puppet_mask" / clip_name(0) / "puppet_mask.mat").unlink()
    with pytest.raises(ValueError, match=r"differs from the verified files in .*squat"):
        prepare.prepare("jhmdb", copy, tmp_path / "tfds", partial=True, quiet=True)


def test_detrac_reports_the_sequences_of_its_lists(traffic_root, tmp_path, capsys):
    """The twin asked for as the real thing: all hundred sequences are missing."""
    arguments = ["ua_detrac", "--manual_dir", str(traffic_root), "--data_dir", str(tmp_path)]
    assert prepare.main([*arguments, "--config", "detrac"]) == 1
    found = report(tmp_path, "detrac", "ua_detrac")
    assert (found["expected"], found["whole"]) == (105, 5)
    out = capsys.readouterr().out
    assert "DETRAC-Train-Annotations-XML/MVI_20011.xml: missing" in out
    assert "more in" in out
    assert prepare.main(arguments) == 0
    assert "5 of 5 whole, 100 frames" in capsys.readouterr().out


def test_lists_of_the_wrong_length_are_a_notice(copy, tmp_path):
    (copy / "synthetic.json").unlink()
    assert prepare.prepare("jhmdb", copy, tmp_path / "tfds", config="sub", quiet=True) is None
    notices = report(tmp_path / "tfds", "sub")["problems"]
    assert notices == [{"file": "sub_splits", "problem": "the lists name 16 clips, not 316"}]


def test_bad_arguments_are_named(synthetic_root, tmp_path, capsys):
    with pytest.raises(ValueError, match="`dataset`"):
        prepare.prepare("mpii", synthetic_root, tmp_path)
    with pytest.raises(ValueError, match=r"`workers` \(=0\)"):
        prepare.prepare("jhmdb", synthetic_root, tmp_path, workers=0)
    with pytest.raises(ValueError, match="`config`"):
        prepare.prepare("jhmdb", synthetic_root, tmp_path, config="half")
    command = ["jhmdb", "--manual_dir", str(tmp_path / "none"), "--data_dir", str(tmp_path)]
    assert prepare.main(command) == 2
    assert "`root`" in capsys.readouterr().err
