"""Average precision of detections: COCO's AP over IoU .5 to .95, with UA-DETRAC's options."""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from skipconv_jax.data.labelled_videos import covered

_KEYS = (
    ("ap", 0),
    ("ap50", 1),
    ("ap75", 2),
    ("ap_small", 3),
    ("ap_medium", 4),
    ("ap_large", 5),
    ("recall100", 8),
)


@dataclasses.dataclass(frozen=True)
class Detections:
    """What a detector says about one frame.

    Attributes:
      boxes: `(N, 4)` x1, y1, x2, y2 in source pixels.
      scores: `(N,)`, higher is surer.
      labels: `(N,)` index of the class.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


Batch = Mapping[str, np.ndarray]
Detector = Callable[[np.ndarray], Sequence[Sequence[Detections]]]


class AveragePrecision:
    """AP@[.5:.95] as COCO defines it, computed by faster-coco-eval.

    Args:
      classes: names of the classes.
      agnostic: one class for all (the default, and how the paper's single figure reads).
      drop_ignored: leave out boxes and detections that ignored regions cover by at least half.
      max_detections: kept per frame.

    Raises:
      ValueError: `classes` is empty or `max_detections` below 1.
    """

    def __init__(
        self,
        classes: Sequence[str] = ("vehicle",),
        agnostic: bool = True,
        drop_ignored: bool = False,
        max_detections: int = 100,
    ) -> None:
        if not classes:
            raise ValueError("`classes` (=()) must name at least one class.")
        if max_detections < 1:
            raise ValueError(f"`max_detections` (={max_detections}) must be at least 1.")
        self.classes = ("object",) if agnostic else tuple(classes)
        self._agnostic, self._drop = agnostic, drop_ignored
        self._max = max_detections
        self._images: list[dict[str, Any]] = []
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    def update(
        self,
        found: Detections,
        boxes: np.ndarray,
        labels: np.ndarray,
        ignored: np.ndarray | None = None,
        crowd: np.ndarray | None = None,
    ) -> None:
        """Adds one annotated frame; frames without annotation must not be added.

        Args:
          found: detections.
          boxes: ground truth `(M, 4)` x1, y1, x2, y2 in source pixels.
          labels: `(M,)`.
          ignored: `(K, 4)` regions in which nothing counts; used with `drop_ignored`.
          crowd: `(M,)` bool, COCO's `iscrowd`: matching these is neither right nor wrong.

        Raises:
          ValueError: shapes do not fit, or a label is no class.
        """
        boxes, labels = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(labels)
        got, scores = np.asarray(found.boxes, np.float64).reshape(-1, 4), np.asarray(found.scores)
        kinds = np.asarray(found.labels)
        if len(boxes) != len(labels) or not len(got) == len(scores) == len(kinds):
            raise ValueError(
                f"`boxes` ({len(boxes)}) and `labels` ({len(labels)}), and `found.boxes` "
                f"({len(got)}), `scores` ({len(scores)}), `labels` ({len(kinds)}) must be of one "
                "length each."
            )
        crowd = np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool)
        if self._drop and ignored is not None:
            keep, seen = covered(boxes, ignored) < 0.5, covered(got, ignored) < 0.5
            boxes, labels, crowd = boxes[keep], labels[keep], crowd[keep]
            got, scores, kinds = got[seen], scores[seen], kinds[seen]
        image = len(self._images) + 1
        self._images.append({"id": image})
        for box, label, many in zip(boxes, labels, crowd, strict=True):
            entry = self._entry(image, box, int(label))
            entry.update(
                id=len(self._truth) + 1, iscrowd=int(many), area=entry["bbox"][2] * entry["bbox"][3]
            )
            self._truth.append(entry)
        for box, score, label in zip(got, scores, kinds, strict=True):
            self._found.append({**self._entry(image, box, int(label)), "score": float(score)})

    def _entry(self, image: int, box: np.ndarray, label: int) -> dict[str, Any]:
        if self._agnostic:
            label = 0
        elif not 0 <= label < len(self.classes):
            raise ValueError(f"`labels` (={label}) must index {self.classes}.")
        x1, y1, x2, y2 = (float(v) for v in box)
        return {"image_id": image, "category_id": label + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}

    def coco(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Ground truth and detections as COCO's JSON holds them."""
        categories = [{"id": i, "name": name} for i, name in enumerate(self.classes, 1)]
        truth = {"images": self._images, "annotations": self._truth, "categories": categories}
        return truth, self._found

    def result(self) -> dict[str, float]:
        """AP and recall in [0, 1]; NaN where there is no ground truth.

        Returns:
          Keys `ap` (IoU .5 to .95), `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large`,
          `recall100`, and `ap/<class>` where classes are told apart.
        """
        # Imported here: its compiled part is only wanted where AP is computed.
        from faster_coco_eval import COCO, COCOeval_faster

        truth, found = self.coco()
        if not self._truth:
            return {name: float("nan") for name, _ in _KEYS}
        with contextlib.redirect_stdout(io.StringIO()):
            ground = COCO(truth)
            answers = ground.loadRes(found) if found else COCO({**truth, "annotations": []})
            evaluation = COCOeval_faster(ground, answers, iouType="bbox", print_function=_silent)
            evaluation.params.maxDets = [1, 10, self._max]
            evaluation.run()
        stats = {name: _known(evaluation.stats[i]) for name, i in _KEYS}
        if not self._agnostic:
            precision = evaluation.eval["precision"][:, :, :, 0, -1]
            for i, name in enumerate(self.classes):
                values = precision[:, :, i]
                stats[f"ap/{name}"] = float(values.mean()) if (values > -1).all() else float("nan")
        return stats


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


def _silent(*_: Any) -> None:
    return None


def _known(value: float) -> float:
    """COCO marks what is undefined by -1."""
    return float(value) if value > -1 else float("nan")
