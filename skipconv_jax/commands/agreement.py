"""A network skipped against itself dense, on a video without labels."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from skipconv_jax import macs, whole_files
from skipconv_jax.commands.evaluate import with_gates
from skipconv_jax.plans import compile_plan
from skipconv_jax.program.canonical import for_this_backend
from skipconv_jax.streaming.runner import Runner
from skipconv_jax.streaming.sources import FrameSource, VideoError
from skipconv_jax.tasks.given.experiment import GivenExperiment
from skipconv_jax.viz.tables import markdown

_PIECE = 4


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How a skipped network compares with the dense one.

    Attributes:
      ap: of the skipped detections against the dense ones that are sure enough, [.5:.95]; None
        without a preset.
      ap50: the same at an overlap of a half.
      objects: dense detections that had to be found.
      error: relative error of the outputs, mean over frames.
      worst: the same of the worst frame.
      gmac: per frame, the reference frame included.
      dense_gmac: per frame.
      ms: per frame, skipped.
      dense_ms: per frame, by the same engine.
      frames: compared.
    """

    ap: float | None
    ap50: float | None
    objects: int
    error: float
    worst: float
    gmac: float
    dense_gmac: float
    ms: float
    dense_ms: float
    frames: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self) | {"reduction": self.dense_gmac / self.gmac}


def _frames(experiment: GivenExperiment, source: FrameSource, count: int, start: int) -> np.ndarray:
    """`(T, 1, H, W, 3)`, as many as make whole pieces."""
    found: list[np.ndarray] = []
    for frame in source:
        if frame.index >= start and frame.image is not None:
            found.append(experiment.fit(frame.image))
        if count and len(found) == count:
            break
    whole = len(found) - len(found) % _PIECE
    if not whole:
        raise VideoError(f"`video` (={source.path}) must have {_PIECE} frames from {start} on.")
    return np.stack(found[:whole])[:, None]


def compare(
    experiment: GivenExperiment,
    weights: dict[str, Any],
    source: FrameSource,
    count: int,
    start: int,
    engine: str = "auto",
    precision: str | None = None,
) -> Agreement:
    """Runs both over the same frames, without a reset.

    Args:
      experiment: the network with gates and policy.
      weights: of it.
      source: of frames.
      count: most frames; 0 for all.
      start: first frame.
      engine: of the skipped network; the dense one is XLA's, in floats.
      precision: of the skipped network, as for `compile_plan`.

    Raises:
      VideoError: too few frames.
    """
    params = with_gates(experiment, weights)
    frames = _frames(experiment, source, count, start)
    net = experiment.traced_net(weights["model"])
    plan = compile_plan(net, params, frames[0], engine=engine, precision=precision)

    def both(outputs: Any) -> Any:
        return outputs, None if experiment.task is None else experiment.read(outputs)

    def dense_run(variables: Any, piece: Any) -> Any:
        return jax.lax.map(lambda x: both(experiment.predict(variables, x)), piece)

    table, runner = plan.table, Runner(plan, both)
    state = runner.init()
    dense = jax.jit(for_this_backend(dense_run)).lower(params["model"], frames[:_PIECE]).compile()
    skipped = runner.piece.lower(plan.constants, state, frames[:_PIECE]).compile()  # type: ignore[attr-defined]
    scorer = None if experiment.task is None else experiment.scorer()
    errors: list[float] = []
    spent, ms, dense_ms, objects = 0.0, 0.0, 0.0, 0
    for at in range(0, len(frames), _PIECE):
        piece = frames[at : at + _PIECE]
        began = time.perf_counter()
        wanted, truth = jax.device_get(dense(params["model"], piece))
        between = time.perf_counter()
        state, reading = skipped(plan.constants, state, piece)
        (got, found), cost = jax.device_get((reading.outputs, reading.macs))
        ms += time.perf_counter() - between
        dense_ms += between - began
        spent += float(cost.sum(dtype=np.float64))
        errors += _errors(got, wanted)
        if scorer is not None:
            labels = experiment.answers(truth)
            objects += int((labels["labels"] >= 0).sum())
            scorer.update(found, labels)
    scores = {} if scorer is None else scorer.result()
    per_frame = 1e3 / len(frames)
    return Agreement(
        scores.get("ap"),
        scores.get("ap50"),
        objects,
        float(np.mean(errors)),
        float(np.max(errors)),
        spent / len(frames) / macs.GIGA,
        table.macs / macs.GIGA,
        ms * per_frame,
        dense_ms * per_frame,
        len(frames),
    )


def _errors(got: Any, wanted: Any) -> list[float]:
    """||y - y'|| / ||y'|| of every frame, over all outputs."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True))
    count = len(pairs[0][0])
    off, size = np.zeros(count), np.zeros(count)
    for a, b in pairs:
        axes = tuple(range(1, b.ndim))
        off += np.square(np.asarray(a, np.float64) - b).sum(axes)
        size += np.square(np.asarray(b, np.float64)).sum(axes)
    return list(np.sqrt(off / np.maximum(size, 1e-30)))


def report(found: Agreement) -> str:
    """As a table."""
    rows = [] if found.ap is None else [
        ["AP@[.5:.95] against dense", "100.00", f"{100 * found.ap:.2f}"],
        ["AP@.5 against dense", "100.00", f"{100 * (found.ap50 or 0):.2f}"],
        ["dense detections to be found", str(found.objects), ""],
    ]  # fmt: skip
    rows += [
        ["relative error, mean / worst frame", "0", f"{found.error:.4f} / {found.worst:.4f}"],
        ["GMAC/frame", f"{found.dense_gmac:.4f}", f"{found.gmac:.4f}"],
        ["reduction", "1.00x", f"{found.dense_gmac / found.gmac:.2f}x"],
        ["ms/frame", f"{found.dense_ms:.1f}", f"{found.ms:.1f}"],
        ["frames", str(found.frames), str(found.frames)],
    ]
    return markdown(["", "dense", "skipped"], rows)


def write(found: Agreement, folder: Path) -> None:
    """`agreement.json` and `agreement.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found.to_dict(), indent=1) + "\n"
    whole_files.write_text(folder / "agreement.json", text)
    whole_files.write_text(folder / "agreement.md", report(found) + "\n")
