"""Accuracy and cost of a pose network on the test clips, dense and skipped."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from skipconv_jax import macs
from skipconv_jax.data.clips import PoseClip
from skipconv_jax.data.pipeline import make_eval_iterator
from skipconv_jax.experiment import Experiment
from skipconv_jax.streaming import make_streamer
from skipconv_jax.tasks.pose import JOINTS, Pck

Tree = Any


@dataclasses.dataclass(frozen=True)
class Result:
    """What one network reached.

    Attributes:
      label: which weights, and how they were run.
      pck: per joint, per group and means, in [0, 1].
      gmac: per frame, mean over all frames, reference frames included, gates not.
      dense_gmac: per frame of the dense network.
      gate_gmac: that the gates spend per frame.
      firing: per stage, share of its multiply-accumulates spent, mean over frames.
      frames: number of frames.
    """

    label: str
    pck: dict[str, float]
    gmac: float
    dense_gmac: float
    gate_gmac: float
    firing: dict[str, float]
    frames: int

    @property
    def reduction(self) -> float:
        """How many times fewer multiply-accumulates than the dense network, gates not counted."""
        return self.dense_gmac / self.gmac

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self) | {
            "reduction": self.reduction,
            "reduction_with_gates": self.dense_gmac / (self.gmac + self.gate_gmac),
        }


def evaluate_dense(
    experiment: Experiment, variables: Tree, clips: Sequence[PoseClip], label: str
) -> Result:
    """The dense network on every frame of the clips."""
    table = experiment.table()

    def predict(variables: Tree, frames: jax.Array) -> jax.Array:
        flat = frames.reshape(-1, *frames.shape[2:])
        joints, _ = experiment.task.predict(experiment.predict(variables, flat))
        return joints.reshape(*frames.shape[:2], *joints.shape[1:])

    run, pck, frames = jax.jit(predict), Pck(), 0
    for batch in _batches(experiment, clips):
        _score(pck, np.asarray(run(variables, batch["frames"])), batch)
        frames += int(batch["valid"].sum())
    gmac = table.macs / macs.GIGA
    stages = dict.fromkeys(table.stages(), 1.0)
    return Result(label, pck.result(), gmac, gmac, 0.0, stages, frames)


def evaluate_skipped(
    experiment: Experiment, weights: dict[str, Tree], clips: Sequence[PoseClip], label: str
) -> Result:
    """The skipped network on every frame of the clips, a new reference frame every `reset_every`.

    Gates without trained parameters take their initial ones, which suits norm gates.
    """
    config, net = experiment.config, experiment.net()
    streams = config.eval.batch
    table = experiment.table(net, streams)
    params = with_gates(experiment, weights)
    streamer = make_streamer(net, table, lambda outputs: experiment.task.predict(outputs)[0])
    pck, frames, spent = Pck(), 0, 0.0
    stages = dict.fromkeys(table.stages(), 0.0)
    for batch in _batches(experiment, clips):
        _, state = net.init(params["model"], experiment.frame(streams), key=jax.random.key(0))
        _, reading = streamer(params, state, np.swapaxes(batch["frames"], 0, 1))
        _score(pck, np.swapaxes(np.asarray(reading.outputs), 0, 1), batch)
        valid = batch["valid"].T
        frames += int(valid.sum())
        spent += float(np.asarray(reading.macs, np.float64)[valid].sum())
        for stage in stages:
            share = np.asarray(reading.firing[stage], np.float64)
            stages[stage] += float(share[valid].sum())
    return Result(
        label,
        pck.result(),
        spent / frames / macs.GIGA,
        table.macs / macs.GIGA,
        table.gate_macs / macs.GIGA,
        {stage: total / frames for stage, total in stages.items()},
        frames,
    )


def with_gates(experiment: Experiment, weights: dict[str, Tree]) -> dict[str, Tree]:
    """Weights with gate parameters; trained ones must fit the configuration's gates.

    Raises:
      ValueError: the checkpoint was trained with other gates, or has none and they need training.
    """
    net = experiment.net()
    params, _ = net.init(weights["model"], experiment.frame(), key=jax.random.key(0))
    trained, initial = weights["gates"], params["gates"]
    if not trained:
        needing = [name for name, gate in initial.items() if "kernel" in gate]
        if needing:
            raise ValueError(
                f"`checkpoint` must hold trained gates for {needing[0]!r} and {len(needing) - 1} "
                "more; train the gated phase, or run with --gate=input_norm."
            )
        return params
    shapes = [jax.tree.map(np.shape, tree) for tree in (trained, initial)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`checkpoint` must hold gates of the kind and the layers this config names; use the "
            "config it was trained with."
        )
    return {"model": weights["model"], "gates": trained}


def _batches(experiment: Experiment, clips: Sequence[PoseClip]) -> Any:
    config = experiment.config
    return make_eval_iterator(
        clips,
        batch=config.eval.batch,
        length=config.eval.reset_every or None,
        size=experiment.size,
        margin=config.data.margin,
        normalized=False,
    )


def _score(pck: Pck, joints: np.ndarray, batch: dict[str, np.ndarray]) -> None:
    counted = batch["visible"] & batch["valid"][..., None]
    pck.update(joints, batch["joints"], batch["size"], counted, batch["scale"])


def report(results: Sequence[Result]) -> str:
    """Results side by side: PCK per joint and means, cost, firing per stage."""
    rows = [(joint, [f"{100 * r.pck[joint]:.1f}" for r in results]) for joint in JOINTS]
    rows += [
        ("PCK@.2, mean of 15", [f"{100 * r.pck['mean15']:.2f}" for r in results]),
        ("GMAC/frame, dense", [f"{r.dense_gmac:.4f}" for r in results]),
        ("GMAC/frame, spent", [f"{r.gmac:.4f}" for r in results]),
        ("GMAC/frame, gates", [f"{r.gate_gmac:.4f}" for r in results]),
        ("reduction", [f"{r.reduction:.2f}x" for r in results]),
        ("frames", [str(r.frames) for r in results]),
    ]
    rows += [
        (f"fired: {stage}", [f"{100 * r.firing[stage]:.1f}%" for r in results])
        for stage in results[0].firing
    ]
    return _table(["", *(r.label for r in results)], rows)


def _table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A Markdown table, columns aligned."""
    cells = [list(header), *([name, *values] for name, values in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(
            zip(row, widths, strict=True))) + " |"
        for row in cells
    ]  # fmt: skip
    rule = "|" + "|".join(
        "-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)
    )
    return "\n".join([lines[0], rule + "|", *lines[1:]])


def write(results: Sequence[Result], config: ConfigDict, folder: Path) -> None:
    """`eval.json` and `eval.md` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    payload = {
        "results": [result.to_dict() for result in results],
        "config": json.loads(config.to_json_best_effort()),
    }
    (folder / "eval.json").write_text(json.dumps(payload, indent=1) + "\n", encoding="utf-8")
    (folder / "eval.md").write_text(report(results) + "\n", encoding="utf-8")
