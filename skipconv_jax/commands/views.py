"""How a task looks at a stream: frames to network input, outputs to JSON and a drawing."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np

from skipconv_jax.data.augment import crop_affine, invert_affine, warp_frames, warp_joints
from skipconv_jax.data.detection_pipeline import MEAN_COLOR, DetectionView, place
from skipconv_jax.data.labelled_videos import clip_boxes
from skipconv_jax.experiment import Experiment
from skipconv_jax.experiment.classification import ActionExperiment
from skipconv_jax.experiment.detection import DetectionExperiment
from skipconv_jax.tasks.detection import Predictions, unpack
from skipconv_jax.viz import draw

Box = tuple[float, float, float, float]


class View(Protocol):
    """One stream as a task sees it. Affines are `(2, 3)`, frame pixels to network input pixels."""

    def affine(self, image: np.ndarray) -> np.ndarray:
        """Where a frame's pixels go in the network's input."""
        ...

    def inputs(self, images: Sequence[np.ndarray], affine: np.ndarray) -> np.ndarray:
        """Network inputs `(T, H, W, 3)` uint8 of frames of one size."""
        ...

    def row(self, seen: Any, affine: np.ndarray, shape: Sequence[int]) -> dict[str, Any]:
        """What the network says of a frame of `shape`, in its pixels; values JSON takes."""
        ...

    def draw(self, image: np.ndarray, row: dict[str, Any]) -> np.ndarray:
        """A copy of the frame with that on it."""
        ...


def make_view(experiment: Experiment, box: Box | None, min_score: float) -> View:
    """The view of an experiment's task.

    Args:
      experiment: of the network.
      box: x1, y1, x2, y2 of what to look at in frame pixels; None for the whole frame.
      min_score: joints or boxes with less confidence are not drawn.

    Raises:
      ValueError: a box for a task that looks at whole frames.
    """
    if isinstance(experiment, DetectionExperiment | ActionExperiment) and box is not None:
        raise ValueError(f"`box` (={box}) must be left out: this task looks at whole frames.")
    if isinstance(experiment, DetectionExperiment):
        return BoxView(experiment.size, experiment.names(), min_score)
    if isinstance(experiment, ActionExperiment):
        return ActionView(experiment.size, tuple(experiment.names()))
    return PoseView(experiment.size, box, min_score)


@dataclasses.dataclass(frozen=True)
class PoseView:
    """Joints of one person, in a crop around `box` or in the whole frame."""

    size: tuple[int, int]
    box: Box | None
    min_score: float

    def affine(self, image: np.ndarray) -> np.ndarray:
        """The crop around the person, a quarter larger."""
        height, width = image.shape[:2]
        box = self.box or (0, 0, width - 1, height - 1)
        margin = 1.25 if self.box else 1.0
        return crop_affine(np.asarray(box, np.float32), *self.size, margin=margin)

    def inputs(self, images: Sequence[np.ndarray], affine: np.ndarray) -> np.ndarray:
        """Crops."""
        return warp_frames(np.stack(images), affine, *self.size)

    def row(self, seen: Any, affine: np.ndarray, shape: Sequence[int]) -> dict[str, Any]:
        """`joints` `(15, 2)` and `scores` `(15,)`."""
        del shape
        joints, scores = seen
        return {
            "joints": np.round(warp_joints(joints, invert_affine(affine)), 2).tolist(),
            "scores": np.round(scores, 4).tolist(),
        }

    def draw(self, image: np.ndarray, row: dict[str, Any]) -> np.ndarray:
        """The skeleton."""
        joints, scores = np.asarray(row["joints"]), np.asarray(row["scores"])
        return draw.draw_pose(image, joints, scores, minimum=self.min_score)


@dataclasses.dataclass(frozen=True)
class BoxView:
    """Boxes of objects; frames are resized until they fit, and padded as in training."""

    size: tuple[int, int]
    names: tuple[str, ...]
    min_score: float

    def affine(self, image: np.ndarray) -> np.ndarray:
        """The whole frame, in the upper left corner."""
        return place(image.shape[:2], self.size, DetectionView()).matrix()

    def inputs(self, images: Sequence[np.ndarray], affine: np.ndarray) -> np.ndarray:
        """Whole frames."""
        size = (self.size[1], self.size[0])
        return np.stack(
            [cv2.warpAffine(image, affine, size, borderValue=MEAN_COLOR) for image in images]
        )

    def row(self, seen: Any, affine: np.ndarray, shape: Sequence[int]) -> dict[str, Any]:
        """`boxes` `(N, 4)` x1, y1, x2, y2, `scores` and `labels`, of the boxes sure enough."""
        found = unpack(Predictions(*seen), self.min_score)
        # Boxes count in edges of pixels, the affine in their centres: half a pixel apart.
        corners = np.asarray(found.boxes, np.float64).reshape(-1, 2) - 0.5
        boxes = (warp_joints(corners, invert_affine(affine)) + 0.5).reshape(-1, 4)
        # The input is padded beyond the frame's edges.
        boxes = clip_boxes(boxes, *shape[:2])
        return {
            "boxes": np.round(boxes, 1).tolist(),
            "scores": np.round(found.scores, 4).tolist(),
            "labels": [self.names[label] for label in found.labels],
        }

    def draw(self, image: np.ndarray, row: dict[str, Any]) -> np.ndarray:
        """Boxes with their labels and scores."""
        return draw.draw_boxes(image, row["boxes"], row["labels"], row["scores"])


@dataclasses.dataclass(frozen=True)
class ActionView:
    """What happens in a frame, seen in its centre crop."""

    size: tuple[int, int]
    names: tuple[str, ...]

    def affine(self, image: np.ndarray) -> np.ndarray:
        """The largest centre crop of the input's shape."""
        height, width = image.shape[:2]
        zoom = max(self.size[0] / height, self.size[1] / width)
        # Centres of pixels: the middle of the frame goes to the middle of the input.
        x, y = ((n - 1) / 2 for n in (width, height))
        to_x, to_y = ((n - 1) / 2 for n in (self.size[1], self.size[0]))
        return np.array([[zoom, 0, to_x - zoom * x], [0, zoom, to_y - zoom * y]])

    def inputs(self, images: Sequence[np.ndarray], affine: np.ndarray) -> np.ndarray:
        """Crops."""
        return warp_frames(np.stack(images), affine.astype(np.float32), *self.size)

    def row(self, seen: Any, affine: np.ndarray, shape: Sequence[int]) -> dict[str, Any]:
        """`label` and its `score`, the softmax of this frame's logits."""
        del affine, shape
        chances = np.exp(seen - np.max(seen))
        best = int(np.argmax(chances))
        return {
            "label": self.names[best],
            "score": round(float(chances[best] / chances.sum()), 4),
        }

    def draw(self, image: np.ndarray, row: dict[str, Any]) -> np.ndarray:
        """The label below the caption."""
        return draw.note(image, f"{row['label']} {row['score']:.2f}")
