"""Logging, checkpoints, stopping, and resuming exactly, also after a kill."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from skipconv_jax.commands import common
from skipconv_jax.training.checkpoints import Checkpoints, DamagedCheckpointError
from skipconv_jax.training.loop import Options, TrainingDiverged, run
from skipconv_jax.training.run_lock import LockedError, run_lock
from tests.training import toy


def _lines(workdir, kind="gated"):
    text = (workdir / kind / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _without_time(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def _saved(workdir):
    checkpoints = Checkpoints(workdir / "gated" / "checkpoints")
    state, position = checkpoints.restore(toy.phase(12).initial())
    checkpoints.close()
    return jax.tree.map(np.asarray, state), position


def test_resuming_after_a_kill_is_exact_to_the_bit(tmp_path, repository):
    steps = 12
    run(toy.phase(steps), tmp_path / "whole", 7, Options(log_every=1, checkpoint_every=3))

    command = [sys.executable, "-m", "tests.training.toy", str(tmp_path / "killed"), str(steps)]
    log = tmp_path / "killed" / "gated" / "metrics.jsonl"
    process = subprocess.Popen(
        [*command, "start"], cwd=repository, env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    last = random.randint(4, steps - 2)
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_text().count("\n") < last:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run did not get on"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(_lines(tmp_path / "killed")) < steps

    run(
        toy.phase(steps),
        tmp_path / "killed",
        7,
        Options(log_every=1, checkpoint_every=3, resume=True),
    )
    whole, resumed = _saved(tmp_path / "whole"), _saved(tmp_path / "killed")
    chex.assert_trees_all_equal(whole[0], resumed[0])
    assert whole[1] == resumed[1]
    assert _without_time(_lines(tmp_path / "whole")) == _without_time(_lines(tmp_path / "killed"))


def test_a_finished_phase_resumes_to_itself(tmp_path):
    options = Options(log_every=1, checkpoint_every=2)
    first = jax.tree.map(np.asarray, run(toy.phase(3, "dense"), tmp_path, 0, options))
    again = run(toy.phase(3, "dense"), tmp_path, 0, Options(log_every=1, resume=True))
    chex.assert_trees_all_equal(first, jax.tree.map(np.asarray, again))


def test_an_existing_run_is_not_overwritten(tmp_path):
    run(toy.phase(2, "dense"), tmp_path, 0, Options())
    with pytest.raises(ValueError, match="pass --resume to continue"):
        run(toy.phase(2, "dense"), tmp_path, 0, Options())


@pytest.mark.parametrize("poison", [0, 3])
def test_training_stops_at_the_step_that_is_not_finite(tmp_path, poison):
    with pytest.raises(
        TrainingDiverged, match=f"stopped at step {poison + 1}: not finite: input frames"
    ):
        run(toy.phase(6, "dense", poison), tmp_path, 0, Options(log_every=100, checkpoint_every=3))
    checkpoints = Checkpoints(tmp_path / "dense" / "checkpoints")
    assert checkpoints.latest == (3 if poison == 3 else None), "a poisoned state was saved"
    checkpoints.close()


def test_metrics_have_every_term(tmp_path):
    run(toy.phase(4), tmp_path, 0, Options(log_every=2))
    rows = _lines(tmp_path)
    assert [row["step"] for row in rows] == [2, 4]
    assert set(rows[0]) == {"step", "loss", "error", "gate", "macs_share", "grad_norm", "seconds"}
    assert rows[0]["loss"] == pytest.approx(rows[0]["error"] + rows[0]["gate"], rel=1e-5)


def test_tensorboard_events_on_request(tmp_path):
    run(toy.phase(2, "dense"), tmp_path, 0, Options(log_every=1, tensorboard=True))
    assert list((tmp_path / "dense" / "tensorboard").glob("events*"))


def test_devices_share_a_batch(tmp_path, repository):
    """Two devices give what one gives: a batch sharded over them is one batch."""
    code = (
        "import sys, jax, pathlib, numpy as np; from tests.training import toy;"
        "from skipconv_jax.training.loop import run, Options;"
        "assert jax.device_count() == 2;"
        "state = run(toy.phase(3, 'dense'), pathlib.Path(sys.argv[1]), 0, Options(log_every=1))"
    )
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "two")], cwd=repository, check=True,
        env={**os.environ, **flags}, capture_output=True, timeout=120,
    )  # fmt: skip
    run(toy.phase(3, "dense"), tmp_path / "one", 0, Options(log_every=1))
    for one, two in zip(
        _lines(tmp_path / "one", "dense"), _lines(tmp_path / "two", "dense"), strict=True
    ):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run(toy.phase(2, "gated"), tmp_path, 0, Options())
    checkpoints = Checkpoints(tmp_path / "gated" / "checkpoints")
    with pytest.raises(ValueError, match="configuration's network"):
        checkpoints.restore(toy.phase(2, "dense").initial())
    checkpoints.close()


def test_weights_alone_can_be_read(tmp_path):
    state = run(toy.phase(2, "gated"), tmp_path, 0, Options())
    checkpoints = Checkpoints(tmp_path / "gated" / "checkpoints")
    step, weights = checkpoints.weights()
    checkpoints.close()
    assert step == 2
    chex.assert_trees_all_equal(weights["model"], jax.tree.map(np.asarray, state.variables))
    chex.assert_trees_all_equal(weights["gates"], jax.tree.map(np.asarray, state.weights["gates"]))


def test_no_checkpoint_is_a_clear_error(tmp_path):
    checkpoints = Checkpoints(tmp_path / "empty")
    with pytest.raises(ValueError, match="holds no checkpoint; train first"):
        checkpoints.weights()
    checkpoints.close()


def _tree_of(folder):
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with checkpoints at 2 and 4; read only."""
    workdir = tmp_path_factory.mktemp("trained")
    run(toy.phase(4, "dense"), workdir, 0, Options(checkpoint_every=2))
    return workdir


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def test_a_reader_changes_nothing_not_even_a_checkpoint_being_written(copied):
    folder = copied / "dense" / "checkpoints"
    being_written = folder / "6.orbax-checkpoint-tmp-1"
    being_written.mkdir()
    (being_written / "part").write_bytes(b"half")
    before = _tree_of(copied)
    reader = Checkpoints(folder)
    assert reader.weights()[0] == reader.latest == 4
    reader.restore(toy.phase(4, "dense").initial())
    with pytest.raises(ValueError, match="opens checkpoints for reading"):
        reader.save(6, toy.phase(4, "dense").initial(), {})
    reader.close()
    assert _tree_of(copied) == before
    Checkpoints(copied / "nothing").close()
    assert not (copied / "nothing").exists()


def _damage(folder, kind):
    state = folder / "state"
    largest = max((p for p in state.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    if kind == "flip":
        data[len(data) // 2] ^= 1
    elif kind == "cut":
        data = data[: len(data) // 2]
    largest.write_bytes(data)
    if kind == "gone":
        largest.unlink()
    elif kind == "state":
        shutil.rmtree(state)


@pytest.mark.parametrize("kind", ["flip", "cut", "gone", "state"])
def test_a_damaged_newest_checkpoint_is_named_and_passed_over_when_asked(copied, kind):
    folder = copied / "dense" / "checkpoints"
    _damage(folder / "4", kind)
    reader = Checkpoints(folder)
    for read in (reader.weights, lambda: reader.restore(toy.phase(4, "dense").initial())):
        with pytest.raises(
            DamagedCheckpointError, match=r"step 4 is damaged: .*Whole are the steps \[2\]"
        ):
            read()
    assert Checkpoints(folder, newest_whole=True).weights()[0] == 2
    resume = Options(log_every=1, checkpoint_every=2, resume=True)
    with pytest.raises(DamagedCheckpointError, match="--newest_whole"):
        run(toy.phase(4, "dense"), copied, 0, resume)
    asked = dataclasses.replace(resume, newest_whole=True)
    again = run(toy.phase(4, "dense"), copied, 0, asked)
    assert int(again.step) == 4
    assert Checkpoints(folder).whole() == [2, 4]
    assert (folder / "4.damaged").is_dir(), "damaged files are kept"


def test_eval_and_stream_pass_it_over_by_the_flag(copied, monkeypatch):
    """Without `--newest_whole` the damage is named, and the flag with it."""
    _damage(copied / "dense" / "checkpoints" / "4", "flip")
    # Of a run's folder, a command reads its weights alone: no experiment is asked.
    with pytest.raises(DamagedCheckpointError, match="--newest_whole"):
        common.load_weights(None, copied / "dense")
    parsed = flags.FLAGS.is_parsed()
    flags.FLAGS.mark_as_parsed()
    try:
        with flagsaver.as_parsed(newest_whole="true"):
            label, weights = common.load_weights(None, copied / "dense")
    finally:
        if not parsed:
            flags.FLAGS.unparse_flags()
    assert label == "dense@2"
    assert weights["model"]["params"]


def test_two_trainings_in_one_folder_are_refused_and_a_killed_one_is_not_in_the_way(tmp_path):
    holder = (
        "import sys, time, pathlib; from skipconv_jax.training.run_lock import run_lock\n"
        "with run_lock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "dense")], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(LockedError, match=rf"process {process.pid} on .* since 0\.\d minutes"):
        run(toy.phase(2, "dense"), tmp_path, 0, Options())
    process.kill()
    process.wait()
    process.stdout.close()
    with run_lock(tmp_path / "dense"), run_lock(tmp_path / "dense"):
        pass
    run(toy.phase(2, "dense"), tmp_path, 0, Options())
