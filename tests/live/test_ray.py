"""Batches and cameras on a cluster of this machine: actors that die cost nothing that was counted.

One cluster for all of it, in a process of its own: starting one takes seconds.
"""

import collections
import functools
import importlib.util
import json
import subprocess
import sys

from skipconv_jax.live.batch import Rules, VideoWorker, outputs
from tests.live.conftest import missing, write_clip
from tests.live.dying import Dying

_SCRIPT = """
import functools, json, sys, time
from pathlib import Path
from skipconv_jax.live.batch import Rules, VideoWorker, run
from skipconv_jax.live.config import CameraPart
from skipconv_jax.live.fleet import Fleet
from skipconv_jax.live.on_ray import OnRay, cluster
from skipconv_jax.live.outlets import LinesFile, Outlet
from skipconv_jax.live.station import Station
from tests.live.dying import Dying

folder, clip = Path(sys.argv[1]), sys.argv[2]
parts = [
    CameraPart(name=f"c{n}", address=clip, loop=True, cuts=False, drop="wait") for n in range(2)
]
with cluster(cpus=2) as cores:
    making = functools.partial(Dying, folder / "batch", 7)
    outcomes = run(
        [clip], folder / "batch", lambda: OnRay(VideoWorker, making, Rules(25)), cores
    )
    made = functools.partial(OnRay, Station, functools.partial(Dying, folder / "fleet", 9), 1)
    fleet = Fleet(parts, made, 2, [Outlet("lines", LinesFile(folder / "rows"))])
    fleet.start()
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and (
        not fleet.died or any(f.answered < 40 for f in fleet.figures().values())
    ):
        time.sleep(0.1)
    fleet.stop()
print(json.dumps([
    [(o.rows, o.died, o.error) for o in outcomes],
    fleet.died,
    {n: f.answered for n, f in fleet.figures().items()},
]))
"""


def test_actors_that_die_cost_no_row_and_repeat_none(tmp_path):
    if importlib.util.find_spec("ray") is None:
        missing("ray")
    clip = write_clip(tmp_path / "clip.mp4", frames=60, rate=30)
    for name in ("batch", "fleet", "expected"):
        (tmp_path / name).mkdir()
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path), str(clip)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    outcomes, died, answered = json.loads(done.stdout.splitlines()[-1])
    assert outcomes == [[60, 1, ""]]
    # The rows of a batch are those of a run in which nobody died.
    (path,) = outputs([str(clip)], tmp_path / "expected").values()
    VideoWorker(functools.partial(Dying, tmp_path, 0), Rules(25)).run(str(clip), str(path))
    assert (tmp_path / "batch" / path.name).read_bytes() == path.read_bytes()
    rows = collections.defaultdict(list)
    for line in (tmp_path / "rows").read_text().splitlines():
        rows[json.loads(line)["camera"]].append(json.loads(line))
    assert died == 1
    assert answered == {name: len(own) for name, own in rows.items()}
    for own in rows.values():
        assert len(own) >= 40
        assert [row["frame"] for row in own] == list(range(len(own)))
    again = [row for own in rows.values() for row in own if "worker died" in row.get("reset", "")]
    assert again
    assert all(row["share"] == 1.0 for row in again), "a reference frame"
