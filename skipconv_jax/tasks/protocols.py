"""The papers' evaluation protocols: PCK over three splits, and AP over the frames of videos."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from skipconv_jax.tasks.average_precision import AveragePrecision, Detections
from skipconv_jax.tasks.pose import GROUPS, Pck

Batch = Mapping[str, np.ndarray]
PosePredictor = Callable[[np.ndarray], Any]
Detector = Callable[[np.ndarray], Sequence[Sequence[Detections]]]


def evaluate_pose(
    predict: PosePredictor, batches: Iterable[Batch], threshold: float = 0.2
) -> dict[str, Pck]:
    """PCK in both published conventions over the batches of `data.pipeline.make_eval_iterator`.

    Args:
      predict: `frames (B, T, H, W, 3) -> joints (B, T, 15, 2)` in pixels of the frames.
      batches: with `valid`.
      threshold: alpha.

    Returns:
      A filled `Pck` per convention.
    """
    scores = {name: Pck(threshold, name) for name in ("extent", "pixels")}
    for batch in batches:
        found = np.asarray(predict(batch["frames"]))
        visible = batch["visible"] & batch["valid"][..., None]
        for score in scores.values():
            score.update(found, batch["joints"], batch["size"], visible, batch["scale"])
    return scores


def over_splits(results: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Rows of a table: one per split and their mean, which is what the paper reports.

    Args:
      results: number of the split to `Pck.result()` or any figures with the same keys.

    Returns:
      `{'split 1': ..., ..., 'mean': ...}`.

    Raises:
      ValueError: no results, or their keys differ.
    """
    if not results:
        raise ValueError("`results` (={}) must hold at least one split.")
    keys = {tuple(result) for result in results.values()}
    if len(keys) != 1:
        raise ValueError("`results` must have the same figures for every split.")
    rows = {f"split {number}": dict(results[number]) for number in sorted(results)}
    mean = {key: float(np.mean([result[key] for result in results.values()])) for key in keys.pop()}
    return {**rows, "mean": mean}


def format_pck(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The papers' table, in percent: the seven groups, means over 15 and 13 joints and 7 groups."""
    columns = [*(f"group/{name}" for name in GROUPS), "mean15", "mean13", "mean7"]
    width = max([*map(len, rows), 8])
    heads = [column.removeprefix("group/").capitalize() for column in columns]
    lines = [" " * width + "".join(f"{head:>10}" for head in heads)]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{100 * row[c]:>10.1f}" for c in columns))
    return "\n".join(lines)


def evaluate_detection(
    detect: Detector,
    batches: Iterable[Batch],
    classes: Sequence[str] = ("vehicle",),
    agnostic: bool = True,
    drop_ignored: bool = False,
) -> AveragePrecision:
    """AP over the annotated frames of `data.detection_pipeline.make_eval_iterator`'s batches.

    Boxes are compared in source pixels, cut at the image's edges.

    Args:
      detect: `frames (B, T, H, W, 3) -> [B][T] Detections` with boxes in pixels of the frames.
      batches: with `valid`; for `agnostic=False` made with `Labels(agnostic=False)`.
      classes: names of the classes.
      agnostic: one class for all.
      drop_ignored: leave out what ignored regions cover by at least half.
    """
    score = AveragePrecision(classes, agnostic, drop_ignored)
    for batch in batches:
        found = detect(batch["frames"])
        add_detections(score, found, batch)
    return score


def add_detections(
    score: AveragePrecision, found: Sequence[Sequence[Detections]], batch: Batch
) -> None:
    """Adds the annotated frames of a batch to an AP; padding and unannotated frames are left out.

    Args:
      score: to add to.
      found: `[B][T]`, boxes in pixels of the frames.
      batch: of `data.detection_pipeline.make_eval_iterator`.
    """
    for b, t in np.argwhere(batch["valid"] & batch["annotated"]):
        scale = float(batch["scale"][b, t])
        real = batch["labels"][b, t] >= 0
        regions = batch["ignored"][b, t]
        regions = regions[(regions[:, 2:] > regions[:, :2]).all(axis=1)]
        one = found[b][t]
        boxes = np.asarray(one.boxes, np.float64).reshape(-1, 4) / scale
        score.update(
            Detections(boxes, one.scores, one.labels),
            batch["boxes"][b, t][real] / scale,
            batch["labels"][b, t][real],
            regions / scale,
        )
