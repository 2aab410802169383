"""Accuracy and cost of a network on the test clips, dense and skipped, whatever its task."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from skipconv_jax import macs, whole_files
from skipconv_jax.plans import Plan, compile_plan
from skipconv_jax.program.canonical import for_this_backend
from skipconv_jax.streaming.runner import Runner, Streamer
from skipconv_jax.tasks import Experiment
from skipconv_jax.tasks.splits import over_splits
from skipconv_jax.viz.tables import markdown

Tree = Any


@dataclasses.dataclass(frozen=True)
class Result:
    """What one network reached.

    Attributes:
      label: which weights, and how they were run.
      scores: named figures of the task, in [0, 1]; `Experiment.figures` says which are shown.
      gmac: per frame, mean over all frames, reference frames included, gates not.
      dense_gmac: per frame of the dense network.
      gate_gmac: that the gates spend per frame.
      firing: per stage, share of its multiply-accumulates spent, mean over frames.
      frames: number of frames.
      clip_length: frames from one reference frame to the next, 0 for whole clips.
    """

    label: str
    scores: dict[str, float]
    gmac: float
    dense_gmac: float
    gate_gmac: float
    firing: dict[str, float]
    frames: int
    clip_length: int = 0

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


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A network made ready to run over clips.

    Attributes:
      run: `(constants, state, frames) -> (state, readings)`, see `streaming.runner.Runner.piece`.
      constants: of its plan, or whatever else `run` takes.
      fresh: makes the state of `config.eval.batch` streams that have seen no frame.
      dense_macs: per frame.
      gate_macs: per frame.
      plan: what runs it, None for what is no skipped network.
    """

    run: Streamer
    constants: Tree
    fresh: Callable[[], Tree]
    dense_macs: int
    gate_macs: int = 0
    plan: Plan | None = None

    @property
    def table(self) -> macs.Table:
        """Of the skipped network."""
        return self._skipped().table

    def with_gates(self, gates: Mapping[str, Tree]) -> "Streamed":
        """The same, compiled already, with other gate parameters."""
        return dataclasses.replace(self, constants=self._skipped().with_gates(gates))

    def _skipped(self) -> Plan:
        if self.plan is None:
            raise ValueError("`plan` (=None) must be one of a skipped network to have gates.")
        return self.plan


def evaluate_dense(
    experiment: Experiment, variables: Tree, clips: Any, label: str, length: int | None = None
) -> Result:
    """The dense network on every frame of the clips.

    Args:
      experiment: network, task and data.
      variables: of the network.
      clips: as `experiment.clips` gives them.
      label: of the result.
      length: frames of a piece; by default the first of `experiment.tests()`.
    """
    table, scorer, frames = experiment.table(), experiment.scorer(), 0
    length = _length(experiment, length)

    def read(variables: Tree, frames: jax.Array) -> Any:
        flat = frames.reshape(-1, *frames.shape[2:])
        seen = experiment.read(experiment.predict(variables, flat))
        return jax.tree.map(lambda leaf: leaf.reshape(*frames.shape[:2], *leaf.shape[1:]), seen)

    run = jax.jit(for_this_backend(read))
    for batch in experiment.test_batches(clips, length):
        scorer.update(jax.device_get(run(variables, batch["frames"])), batch)
        frames += int(batch["valid"].sum())
    gmac = table.macs / macs.GIGA
    stages = dict.fromkeys(table.stages(), 1.0)
    return Result(label, scorer.result(), gmac, gmac, 0.0, stages, frames, length)


def evaluate_skipped(
    experiment: Experiment,
    weights: dict[str, Tree],
    clips: Any,
    label: str,
    length: int | None = None,
    engine: str = "auto",
) -> Result:
    """The skipped network on every frame of the clips, a new reference frame every `length`.

    Arguments as for `evaluate_dense` and `make_skipped`.
    """
    ready = make_skipped(experiment, weights, engine)
    return evaluate_streamed(experiment, ready, clips, label, length)


def make_skipped(
    experiment: Experiment, weights: dict[str, Tree], engine: str = "auto"
) -> Streamed:
    """The configuration's skipped network, ready to run on the engine that streams run on.

    Gates without trained parameters take their initial ones, which suits norm gates.

    Raises:
      ValueError: gates that need training and have not had it, see `with_gates`, or an engine asked
        for by name that can't run it.
    """
    streams = experiment.config.eval.batch
    params = with_gates(experiment, weights, streams)
    net, frame = experiment.traced_net(weights["model"], streams), experiment.frame(streams)
    plan = compile_plan(net, params, frame, engine=engine, keep_outputs=True)
    runner = Runner(plan, experiment.read)
    table = plan.table
    return Streamed(runner.piece, plan.constants, runner.init, table.macs, table.gate_macs, plan)


def evaluate_streamed(
    experiment: Experiment,
    network: Streamed,
    clips: Any,
    label: str,
    length: int | None = None,
) -> Result:
    """Any network that runs over streams; other arguments as for `evaluate_dense`."""
    scorer, frames, spent = experiment.scorer(), 0, 0.0
    length, stages = _length(experiment, length), dict[str, float]()
    for batch in experiment.test_batches(clips, length):
        _, reading = network.run(network.constants, network.fresh(), _swap(batch["frames"]))
        reading = jax.device_get(reading)
        scorer.update(jax.tree.map(_swap, reading.outputs), batch)
        valid = batch["valid"].T
        frames += int(valid.sum())
        spent += float(np.asarray(reading.macs, np.float64)[valid].sum())
        for stage, share in reading.firing.items():
            stages[stage] = stages.get(stage, 0.0) + float(share[valid].sum(dtype=np.float64))
    return Result(
        label,
        scorer.result(),
        spent / frames / macs.GIGA,
        network.dense_macs / macs.GIGA,
        network.gate_macs / macs.GIGA,
        {stage: total / frames for stage, total in stages.items()},
        frames,
        length,
    )


def _length(experiment: Experiment, length: int | None) -> int:
    return next(iter(experiment.tests().values())) if length is None else length


def _swap(array: np.ndarray) -> np.ndarray:
    """(B, T, ...) to (T, B, ...) and back."""
    return np.swapaxes(array, 0, 1)


def with_gates(
    experiment: Experiment, weights: dict[str, Tree], streams: int = 1
) -> dict[str, Tree]:
    """Weights with gate parameters; trained ones must fit the configuration's gates.

    Args:
      experiment: whose gates they are.
      weights: `{'model': variables, 'gates': trained ones or {}}`.
      streams: of the frames that the network is about to run on, which spares it another trace.

    Raises:
      ValueError: the checkpoint was trained with other gates, or has none and they need training.
    """
    net = experiment.traced_net(weights["model"], streams)
    frame, key = experiment.frame(streams), jax.random.key(0)
    initial: Tree = net.init_gates(weights["model"], frame, key=key)
    trained = weights["gates"]
    if not trained:
        needing = [name for name, gate in initial.items() if "kernel" in gate]
        if needing:
            raise ValueError(
                f"`checkpoint` must hold trained gates for {needing[0]!r} and {len(needing) - 1} "
                "more; train the gated phase, or run with --gate=input_norm."
            )
        return {"model": weights["model"], "gates": initial}
    shapes = [jax.tree.map(np.shape, tree) for tree in (trained, initial)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`checkpoint` must hold gates of the kind and the layers this config names; use the "
            "config it was trained with."
        )
    return {"model": weights["model"], "gates": trained}


def report(experiment: Experiment, results: Sequence[Result]) -> str:
    """Results side by side: the task's figures, cost, firing per stage."""
    rows = [
        [name, *(_percent(r.scores[key]) for r in results)]
        for key, name in experiment.figures
        if any(np.isfinite(r.scores[key]) for r in results)
    ]
    if experiment.per_video:
        unit, times = "video", [max(r.clip_length, 1) for r in results]
    else:
        unit, times = "frame", [1 for _ in results]
    for name in ("dense_gmac", "gmac", "gate_gmac"):
        what = {"dense_gmac": "dense", "gmac": "spent", "gate_gmac": "gates"}[name]
        cells = [f"{k * getattr(r, name):.4f}" for r, k in zip(results, times, strict=True)]
        rows.append([f"GMAC/{unit}, {what}", *cells])
    rows += [
        ["reduction", *(f"{r.reduction:.2f}x" for r in results)],
        ["frames", *(str(r.frames) for r in results)],
    ]
    stages = {stage: None for r in results for stage in r.firing}
    rows += [
        [f"fired: {stage}", *(f"{100 * r.firing.get(stage, np.nan):.1f}%" for r in results)]
        for stage in stages
    ]
    return markdown(["", *(r.label for r in results)], rows)


def split_report(
    experiment: Experiment, results: Mapping[int, Sequence[Result]]
) -> tuple[str, dict[str, Any]]:
    """Rows per split and their mean, which is what the paper reports, as text and for JSON.

    Args:
      experiment: of any of the splits.
      results: number of the split to its results, in the same order for every split.
    """
    rows, saved = [], {}
    for index, first in enumerate(next(iter(results.values()))):
        # Labels name the step of a checkpoint; the last word says how it was run.
        how = first.label.rpartition(" ")[2]
        table = over_splits(
            {n: {**r[index].scores, "gmac": r[index].gmac, "gate_gmac": r[index].gate_gmac}
             for n, r in results.items()}
        )  # fmt: skip
        saved[how] = table
        for name, figures in table.items():
            shown = [_percent(figures[key]) for key, _ in experiment.figures]
            costs = [f"{figures['gmac']:.4f}", f"{figures['gate_gmac']:.4f}"]
            rows.append([f"{how}, {name}", *shown, *costs])
    header = ["", *(name for _, name in experiment.figures), "GMAC/frame", "gates"]
    return markdown(header, rows), saved


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def write(
    experiment: Experiment, results: Sequence[Result], config: ConfigDict, folder: Path
) -> None:
    """`eval.json` and `eval.md` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    payload = {
        "results": [result.to_dict() for result in results],
        "config": json.loads(config.to_json_best_effort()),
    }
    whole_files.write_text(folder / "eval.json", json.dumps(payload, indent=1) + "\n")
    whole_files.write_text(folder / "eval.md", report(experiment, results) + "\n")
