"""AP of a detector that is brought against labels of a video, classes matched by their names."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skipconv_jax.data.video_labels import VideoLabels
from skipconv_jax.tasks.detection.metrics import AveragePrecision, Detections
from skipconv_jax.tasks.detection.predictions import Predictions, unpack
from skipconv_jax.tasks.detection.view import on_frame
from skipconv_jax.tasks.given.boxes import DetectionGiven

# Names of one thing in MOTChallenge, Pascal VOC and COCO.
_SAME = {
    "pedestrian": "person",
    "people": "person",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}


def _plain(name: str) -> str:
    name = name.strip().lower().replace("_", " ")
    return _SAME.get(name, name)


class LabelScorer:
    """COCO AP in the frame's pixels; only classes that the labels have count.

    Args:
      experiment: a detector.
      labels: of the video.

    Raises:
      ValueError: no class of the labels is one of the detector's.
    """

    def __init__(self, experiment: DetectionGiven, labels: VideoLabels) -> None:
        own = {_plain(name): index for index, name in enumerate(experiment.task.classes)}
        self._index = np.array([own.get(_plain(name), -1) for name in labels.classes], np.int64)
        if not (self._index >= 0).any():
            raise ValueError(
                f"`labels` (={str(labels.path)!r}, classes {', '.join(labels.classes)}) must have "
                f"a class of the preset's: {', '.join(experiment.task.classes)}."
            )
        self._labels, self._view = labels, experiment.view(None, 0.0)
        self._precision = AveragePrecision(experiment.task.classes, False, True)
        self.frames = 0

    def update(self, seen: Any, frames: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """Adds frames that are annotated.

        Args:
          seen: what was read of them, (T, 1, ...).
          frames: number in the video and shape of each.
        """
        found = [row[0] for row in unpack(Predictions(*seen))]
        for (number, shape), one in zip(frames, found, strict=True):
            if number not in self._labels.frames:
                continue
            truth = self._labels.frames[number]
            affine = self._view.affine(np.empty(shape, np.uint8))
            labels = self._index[truth.labels]
            self._precision.update(
                Detections(on_frame(one.boxes, affine, shape), one.scores, one.labels),
                truth.boxes[labels >= 0],
                labels[labels >= 0],
                truth.ignored,
            )
            self.frames += 1

    def result(self) -> dict[str, float]:
        """As `AveragePrecision.result`.

        Raises:
          ValueError: no frame was annotated.
        """
        if not self.frames:
            raise ValueError(
                f"`labels` (={str(self._labels.path)!r}) must annotate frames of those compared; "
                f"it has frames {min(self._labels.frames, default=None)} to "
                f"{max(self._labels.frames, default=None)} (from 0 on)."
            )
        return self._precision.result()
