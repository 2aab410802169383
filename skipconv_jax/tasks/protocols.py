"""The papers' evaluation protocols: means over splits, and AP over the frames of videos."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from skipconv_jax.tasks.average_precision import AveragePrecision, Detections

Batch = Mapping[str, np.ndarray]
Detector = Callable[[np.ndarray], Sequence[Sequence[Detections]]]


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
