"""A network skipped against itself dense, on a video, with labels or without."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from skipconv_jax import macs, whole_files
from skipconv_jax.commands.evaluate import with_gates
from skipconv_jax.data.video_labels import VideoLabels
from skipconv_jax.plans import compile_plan
from skipconv_jax.program.canonical import for_this_backend
from skipconv_jax.streaming.runner import Runner
from skipconv_jax.streaming.sources import FrameSource, VideoError
from skipconv_jax.tasks.given.boxes import DetectionGiven
from skipconv_jax.tasks.given.experiment import GivenExperiment
from skipconv_jax.tasks.given.labelled import LabelScorer
from skipconv_jax.viz.tables import markdown

_PIECE = 4


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How a skipped network compares with the dense one.

    Attributes:
      figures: (key of a score, its name in the table) of the task; none for `raw`.
      scores: of the skipped answers against the dense ones that are sure enough: AP of boxes, PCK
        of keypoints, IoU of classes.
      asks: what the dense network's answers are.
      objects: how many of them had to be found.
      against_labels: dense and skipped scores against labels, by key; empty without labels.
      labelled: frames that the labels annotate.
      error: relative error of the outputs, mean over frames.
      worst: the same of the worst frame.
      gmac: per frame, the reference frame included.
      dense_gmac: per frame.
      ms: per frame, skipped.
      dense_ms: per frame, XLA.
      frames: compared.
    """

    figures: tuple[tuple[str, str], ...]
    scores: Mapping[str, float]
    asks: str
    objects: int
    against_labels: Mapping[str, tuple[float, float]]
    labelled: int
    error: float
    worst: float
    gmac: float
    dense_gmac: float
    ms: float
    dense_ms: float
    frames: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: scores by their keys, None for what is unknown (no answer was sure)."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del own["figures"], own["scores"], own["against_labels"]
        labels = {
            key: {"dense": _known(dense), "skipped": _known(skipped)}
            for key, (dense, skipped) in self.against_labels.items()
        }
        scores = {key: _known(self.scores[key]) for key, _ in self.figures}
        return {
            **scores,
            **own,
            "against_labels": labels,
            "reduction": self.dense_gmac / self.gmac,
        }


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return value if np.isfinite(value) else None


@dataclasses.dataclass(frozen=True)
class _Frames:
    """`(T, 1, H, W, 3)` of the network's input; number in the video and shape of each."""

    inputs: np.ndarray
    sources: tuple[tuple[int, tuple[int, ...]], ...]


def _frames(experiment: GivenExperiment, source: FrameSource, count: int, start: int) -> _Frames:
    """As many as make whole pieces."""
    found: list[np.ndarray] = []
    sources: list[tuple[int, tuple[int, ...]]] = []
    for frame in source:
        if frame.index >= start and frame.image is not None:
            found.append(experiment.fit(frame.image))
            sources.append((frame.index, frame.image.shape))
        if count and len(found) == count:
            break
    whole = len(found) - len(found) % _PIECE
    if not whole:
        raise VideoError(f"`video` (={source.path}) must have {_PIECE} frames from {start} on.")
    return _Frames(np.stack(found[:whole])[:, None], tuple(sources[:whole]))


class _Scores:
    """Agreement, and both networks against labels if there are any."""

    def __init__(self, experiment: GivenExperiment, labels: VideoLabels | None) -> None:
        self._experiment, self.objects = experiment, 0
        self._scorer = experiment.scorer() if experiment.answers_for_labels else None
        self._labelled: list[LabelScorer] = []
        if labels is None:
            return
        if not isinstance(experiment, DetectionGiven):
            raise ValueError(
                f"`labels` (={str(labels.path)!r}) hold boxes and must come with --task detection "
                "and a --preset; without them, what is compared is the agreement."
            )
        self._labelled = [LabelScorer(experiment, labels) for _ in ("dense", "skipped")]

    def update(self, dense: Any, skipped: Any, sources: Any) -> None:
        """Adds what was read of a piece, (T, 1, ...)."""
        if self._scorer is not None:
            answers = self._experiment.answers(dense)
            self.objects += self._experiment.asked(answers)
            self._scorer.update(skipped, answers)
        for scorer, seen in zip(self._labelled, (dense, skipped), strict=False):
            scorer.update(seen, sources)

    @property
    def labelled(self) -> int:
        """Frames with labels."""
        return self._labelled[0].frames if self._labelled else 0

    def agreement(self) -> dict[str, float]:
        """Scores of the skipped answers against the dense ones."""
        return {} if self._scorer is None else self._scorer.result()

    def against_labels(self) -> dict[str, tuple[float, float]]:
        """Dense and skipped."""
        if not self._labelled:
            return {}
        dense, skipped = (scorer.result() for scorer in self._labelled)
        return {key: (dense[key], skipped[key]) for key, _ in self._experiment.figures}


def compare(
    experiment: GivenExperiment,
    weights: dict[str, Any],
    source: FrameSource,
    count: int,
    start: int,
    engine: str = "auto",
    precision: str | None = None,
    labels: VideoLabels | None = None,
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
      labels: of the video's frames, for a detector.

    Raises:
      VideoError: too few frames.
      ValueError: labels that do not fit.
    """
    scores = _Scores(experiment, labels)
    params = with_gates(experiment, weights)
    frames = _frames(experiment, source, count, start)
    images = frames.inputs
    net = experiment.traced_net(weights["model"])
    plan = compile_plan(net, params, images[0], engine=engine, precision=precision)

    def both(outputs: Any) -> Any:
        return outputs, experiment.read(outputs) if experiment.answers_for_labels else None

    def dense_run(variables: Any, piece: Any) -> Any:
        return jax.lax.map(lambda x: both(experiment.predict(variables, x)), piece)

    table, runner = plan.table, Runner(plan, both)
    state = runner.init()
    dense = jax.jit(for_this_backend(dense_run)).lower(params["model"], images[:_PIECE]).compile()
    skipped = runner.piece.lower(plan.constants, state, images[:_PIECE]).compile()  # type: ignore[attr-defined]
    errors: list[float] = []
    spent, ms, dense_ms = 0.0, 0.0, 0.0
    for at in range(0, len(images), _PIECE):
        piece = images[at : at + _PIECE]
        began = time.perf_counter()
        wanted, truth = jax.device_get(dense(params["model"], piece))
        between = time.perf_counter()
        state, reading = skipped(plan.constants, state, piece)
        (got, found), cost = jax.device_get((reading.outputs, reading.macs))
        ms += time.perf_counter() - between
        dense_ms += between - began
        spent += float(cost.sum(dtype=np.float64))
        errors += _errors(got, wanted)
        scores.update(truth, found, frames.sources[at : at + _PIECE])
    per_frame = 1e3 / len(images)
    return Agreement(
        experiment.figures,
        scores.agreement(),
        experiment.asks,
        scores.objects,
        scores.against_labels(),
        scores.labelled,
        float(np.mean(errors)),
        float(np.max(errors)),
        spent / len(images) / macs.GIGA,
        table.macs / macs.GIGA,
        ms * per_frame,
        dense_ms * per_frame,
        len(images),
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
    rows = [
        [f"{name} against dense", "100.00", f"{100 * found.scores[key]:.2f}"]
        for key, name in reversed(found.figures)
    ]
    if found.asks:
        rows.append([f"dense {found.asks} to be found", str(found.objects), ""])
    names = dict(found.figures)
    rows += [
        [f"{names[key]} against labels", f"{100 * dense:.2f}", f"{100 * skipped:.2f}"]
        for key, (dense, skipped) in reversed(list(found.against_labels.items()))
    ]
    if found.against_labels:
        rows.append(["frames with labels", str(found.labelled), str(found.labelled)])
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
