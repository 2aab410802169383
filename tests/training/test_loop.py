"""Logging, checkpoints, stopping, and resuming exactly, also after a kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest

from skipconv_jax.training.checkpoints import Checkpoints
from skipconv_jax.training.loop import Options, TrainingDiverged, run
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
