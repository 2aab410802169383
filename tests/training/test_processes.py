"""Two processes on the loopback train what one does; one that is killed ends the run in words."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest

from skipconv_jax.training import processes
from skipconv_jax.training.checkpoints import Checkpoints
from skipconv_jax.training.loop import Options, run
from tests.live.conftest import free_port
from tests.training import together


def _started(folder, steps, *rest, count=2):
    port = free_port()
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.together", str(port), str(count), str(index),
             str(folder), str(steps), *rest],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for index in range(count)
    ]  # fmt: skip


def _finished(started, seconds=240):
    """Exit codes and what was said."""
    said = [process.communicate(timeout=seconds)[1] for process in started]
    return [process.returncode for process in started], said


def _losses(folder):
    lines = (folder / "gated" / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Ten steps of one process with the whole batch."""
    folder = tmp_path_factory.mktemp("alone")
    state = run(together.phase(10), folder, 7, Options(log_every=1, checkpoint_every=3))
    return state, _losses(folder)


def test_two_processes_train_as_one_and_one_goes_on_from_their_checkpoint(alone, tmp_path):
    codes, said = _finished(_started(tmp_path, 10))
    assert codes == [0, 0], said
    state, losses = alone
    found = _losses(tmp_path)
    assert sorted(found) == list(range(1, 11)), "written once, by one of them"
    np.testing.assert_allclose([*found.values()], [*losses.values()], rtol=1e-5)
    opened = Checkpoints(tmp_path / "gated" / "checkpoints", keep=2)
    with contextlib.closing(opened) as checkpoints:
        assert checkpoints.fault(10) == "", "hashes are of all files of both processes"
        restored, position = checkpoints.restore(together.phase(10).initial())
    assert position == {"position": 10}
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-6)
    close(restored.weights, jax.device_get(state.weights))
    close(restored.stats, jax.device_get(state.stats))
    # From the first nine steps of two, alone to the tenth.
    (tmp_path / "gated" / "checkpoints" / "10").rename(tmp_path / "ten")
    again = run(together.phase(10), tmp_path, 7, Options(log_every=1, resume=True))
    close(jax.device_get(again.weights), jax.device_get(state.weights))


def test_a_killed_process_ends_the_run_in_words(tmp_path):
    started = _started(tmp_path, 100_000, "slow")
    deadline = time.monotonic() + 240
    lines = tmp_path / "gated" / "metrics.jsonl"
    while not (lines.exists() and len(lines.read_text().splitlines()) > 3):
        assert time.monotonic() < deadline
        assert [process.poll() for process in started] == [None, None]
        time.sleep(0.1)
    started[1].send_signal(signal.SIGKILL)
    codes, said = _finished(started)
    assert codes == [1, -9]
    assert "another of the 2 processes is gone" in said[0], said[0]
    assert "--resume" in said[0]


def test_batches_and_arguments_must_fit(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    assert processes.part(6) == 2
    with pytest.raises(ValueError, match=r"`batch` \(=4 clips\) must be divisible by the 3"):
        processes.part(4)
    with pytest.raises(ValueError, match="must be given together"):
        processes.begin("127.0.0.1:1", 2, None)
    with pytest.raises(ValueError, match=r"`process` \(=2\) must be from 0 to"):
        processes.begin("127.0.0.1:1", 2, 2)
