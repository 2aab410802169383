"""Kills at random moments: of trainings, of preparing data, beside a reader, of builds.

Each campaign ends by finishing what was killed and comparing it with what was never killed.
"""

import argparse
import atexit
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_STEPS = 100_000
_PREPARE = "skipconv_jax.data.prepare"


def _start(command: list[str], **environment: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def _kill(process: subprocess.Popen[bytes], least: float, most: float, rng: random.Random) -> bool:
    """Kills a process and its children after a while; False where it had ended by itself."""
    time.sleep(rng.uniform(least, most))
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    errors = process.communicate()[1].decode()
    if not running and process.returncode:
        raise AssertionError(f"it failed, unkilled:\n{errors[-3000:]}")
    return running


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and its children, if they are still there."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _told(number: int, kills: int, what: str = "") -> None:
    """A line every ten kills: a campaign takes up to half an hour."""
    if (number + 1) % 10 == 0:
        print(f"  {number + 1} of {kills} kills{what}", flush=True)


def _first_line(log: Path, process: subprocess.Popen[bytes]) -> None:
    """Waits until a training writes: before that there is nothing to lose."""
    size = log.stat().st_size if log.exists() else 0
    while process.poll() is None and (not log.exists() or log.stat().st_size <= size):
        time.sleep(0.02)


def training(kills: int, rng: random.Random, folder: Path, look: bool = False) -> str:
    """Kills one training again and again; every resumption must begin where a checkpoint is whole.

    With `look` a reader opens its checkpoints at the same time, and nothing may change by it.
    """
    from skipconv_jax.training.checkpoints import Checkpoints

    log, reads, last = folder / "gated" / "metrics.jsonl", 0, 0
    checkpoints = folder / "gated" / "checkpoints"
    for number in range(kills):
        how = "resume" if number else "start"
        process = _start(
            [sys.executable, "-m", "tests.training.toy", str(folder), str(_STEPS), how]
        )
        # Also when this campaign itself is stopped: nothing may train on.
        atexit.register(_end, process)
        _first_line(log, process)
        until = time.monotonic() + rng.uniform(0, 2)
        while look and time.monotonic() < until and process.poll() is None:
            reader = Checkpoints(checkpoints)
            if reader.latest is not None:
                reader.weights()
                reads += 1
        if not _kill(process, 0, 0.1 if look else 2, rng):
            raise AssertionError("the training ended before it could be killed")
        whole = Checkpoints(checkpoints).whole()
        if whole:
            assert whole[-1] >= last, f"checkpoint {last} was lost; whole are {whole}"
            assert Checkpoints(checkpoints).latest == whole[-1], "the newest is damaged"
            last = whole[-1]
        _told(number, kills, f", step {last}")
    rows = [json.loads(line) for line in log.read_bytes().splitlines(keepends=True)
            if line.endswith(b"\n")]  # fmt: skip
    steps = [row["step"] for row in rows]
    assert steps == list(range(1, len(steps) + 1)), "metrics were lost or written twice"
    looked = f", {reads} times a reader looked on" if look else ""
    return f"{kills} kills up to step {last}{looked}: no whole checkpoint lost, no metric twice"


def preparing(kills: int, rng: random.Random, folder: Path) -> str:
    """Kills `data.prepare`, then lets it finish: what it wrote equals what was never killed."""
    from skipconv_jax.data.synthetic_pose import Scene, generate

    source = folder / "source"
    generate(source, 6, Scene(height=96, width=128, frames=10), seed=5, workers=1)
    ends = 0

    def command(out: Path) -> list[str]:
        return [sys.executable, "-m", _PREPARE, "jhmdb", "--manual_dir", str(source),
                "--data_dir", str(out)]  # fmt: skip

    began = time.monotonic()
    subprocess.run(command(folder / "whole"), check=True, capture_output=True)
    seconds = time.monotonic() - began
    for number in range(kills):
        ended = not _kill(_start(command(folder / "killed")), 0.3 * seconds, seconds, rng)
        ends += ended
        if ended:
            shutil.rmtree(folder / "killed", ignore_errors=True)
        _told(number, kills)
    subprocess.run(command(folder / "killed"), check=True, capture_output=True)
    trees = [_records(folder / name) for name in ("whole", "killed")]
    assert trees[0] == trees[1], "the records differ"
    return f"{kills} kills ({ends} came too late): the records equal those never killed"


def _records(root: Path) -> dict[str, bytes]:
    """Records by name: of each clip, what was written."""
    from skipconv_jax.data import records

    source = records.Records(records.folder(root, "jhmdb", "synthetic"))
    found = {}
    for key in source.catalogue():
        record = source.read(key)
        found[records.text(record["name"])] = b"".join(record["frames"])
    return found


def builds(kills: int, rng: random.Random, folder: Path) -> str:
    """Kills `native.build`, also while it compiles; a library is there whole or not at all."""
    from skipconv_jax.native import build

    code = "import pathlib, sys; from skipconv_jax.native import build; " \
           "build.build(pathlib.Path(sys.argv[1]))"  # fmt: skip
    whole = 0
    for number in range(kills):
        _kill(_start([sys.executable, "-c", code, str(folder)]), 0.2, 60, rng)
        library = folder / build.library_name()
        if library.exists():
            assert build.is_whole(library) or not list(folder.glob("*.sha256"))
            whole += build.is_whole(library)
            for path in folder.iterdir():
                path.unlink()
        _told(number, kills)
    assert build.is_whole(build.build(folder))
    return f"{kills} kills ({whole} came after the library was whole): never half a library loaded"


def main(arguments: list[str]) -> int:
    """Runs the campaigns and prints a line for each; any loss is an AssertionError."""
    parser = argparse.ArgumentParser("python -m fuzz kills", description=__doc__)
    parser.add_argument("--training", type=int, default=50)
    parser.add_argument("--preparing", type=int, default=50)
    parser.add_argument("--looking", type=int, default=50)
    parser.add_argument("--builds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    print(f"seed {options.seed}")
    # `kill` and `timeout` end it as an exit does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    campaigns: list[tuple[str, int, Callable[[int, random.Random, Path], str]]] = [
        ("training", options.training, training),
        ("preparing", options.preparing, preparing),
        ("looking", options.looking, lambda n, r, f: training(n, r, f, look=True)),
        ("builds", options.builds, builds),
    ]
    for name, kills, campaign in campaigns:
        if kills:
            with tempfile.TemporaryDirectory() as tmp:
                print(f"{name}: {campaign(kills, rng, Path(tmp))}", flush=True)
    return 0
