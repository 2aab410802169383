"""Does the input keep up with training? Clips per second of each source, and waiting in a step.

    python -m benchmarks.input_pipeline --config configs/hrnet_synthetic.py --steps 20

Writes a synthetic set into a temporary folder, reads it from the folder, from records and from
memory, alone (clips per second) and under the configuration's dense training step (share of a step
in which the device waits for the input). One process, the configuration's sizes.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from skipconv_jax import whole_files
from skipconv_jax.config import load
from skipconv_jax.data.pipeline import make_train_iterator
from skipconv_jax.data.prepare import prepare
from skipconv_jax.data.sources import open_clips
from skipconv_jax.data.synthetic_pose import Scene, generate
from skipconv_jax.tasks import DENSE, build
from skipconv_jax.training.step import make_step
from skipconv_jax.viz.tables import markdown

_SCENE = Scene(height=180, width=240, frames=24)
_CLIPS = 24


def rate(batches: Iterator[Any], clips_per_batch: int, seconds: float) -> float:
    """Clips per second with nothing else running; the first batch is not counted."""
    next(batches)
    begin, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < seconds:
        next(batches)
        count += 1
    return count * clips_per_batch / spent


def waiting(step: Any, state: Any, batches: Iterator[Any], steps: int) -> tuple[float, float]:
    """Milliseconds a step takes, and the share of it that goes into waiting for the next batch."""
    key = jax.random.key(0)
    waited, begin = 0.0, 0.0
    for number in range(steps + 2):
        if number == 2:  # the first two compile and warm up
            waited, begin = 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        state, figures = step(state, batch, key)
        jax.block_until_ready(figures.loss)
    spent = time.perf_counter() - begin
    return 1e3 * spent / steps, waited / spent


def sources(folder: Path) -> dict[str, tuple[Sequence[Any], bool]]:
    """Name to (clips, whether they are decoded once and kept)."""
    root, records = folder / "clips", folder / "tfds"
    generate(root, _CLIPS, _SCENE)
    prepare("jhmdb", root, records, quiet=True)
    plain = open_clips(root, "train")
    return {
        "folder (PNG)": (plain, False),
        "records (PNG)": (open_clips(records, "train"), False),
        "memory": (plain, True),
    }


def measure(config: Any, steps: int, seconds: float) -> list[dict[str, Any]]:
    """One row for each source."""
    experiment, rows = build(config), []
    recipe = config[DENSE]
    with tempfile.TemporaryDirectory() as scratch:
        config.data.root = str(Path(scratch) / "clips")
        for name, (clips, cache) in sources(Path(scratch)).items():

            def batches(clips: Sequence[Any] = clips, cache: bool = cache) -> Any:
                return make_train_iterator(
                    clips,
                    batch=recipe.batch,
                    length=recipe.clip_length,
                    size=experiment.size,
                    normalized=False,
                    cache=cache,
                )

            row: dict[str, Any] = {"source": name}
            row["clips_per_second"] = rate(batches(), recipe.batch, seconds)
            if steps:
                phase = experiment.phase(DENSE, Path(scratch) / "run")
                step = make_step(phase.loss_fn, phase.optimizer)
                fixed: Mapping[str, np.ndarray] = next(batches())
                row["step_ms"], _ = waiting(step, phase.initial(), itertools.repeat(fixed), steps)
                row["fed_step_ms"], row["waiting"] = waiting(
                    step, phase.initial(), batches(), steps
                )
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    cells = []
    for row in rows:
        cells.append([row["source"], f"{row['clips_per_second']:.1f}", "", "", ""])
        if "waiting" in row:
            times = (f"{row[name]:.1f}" for name in ("step_ms", "fed_step_ms"))
            cells[-1][2:] = [*times, f"{row['waiting']:.1%}"]
    return markdown(["source", "clips/s", "step ms", "fed ms", "waiting"], cells)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Throughput of the input pipeline.")
    parser.add_argument("--config", default="configs/hrnet_synthetic.py")
    parser.add_argument("--steps", type=int, default=20, help="0: the input alone")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each rate")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args(argv)
    config = load(args.config)
    rows = measure(config, args.steps, args.seconds)
    print(f"{config.input.height} x {config.input.width}, {config.dense.batch} clips of "
          f"{config.dense.clip_length} frames")  # fmt: skip
    print(table(rows))
    if args.json:
        whole_files.write_text(args.json, json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
