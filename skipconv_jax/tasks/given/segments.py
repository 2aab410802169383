"""Segmentation with a network that is brought: a class per pixel of scores (B, C, h, w), IoU."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.presets import Pixels
from skipconv_jax.tasks.base import Batch, Box, Scorer, View, whole_frames
from skipconv_jax.tasks.given.base import GivenExperiment, maps
from skipconv_jax.tasks.given.view import ClassMap


@dataclasses.dataclass(frozen=True)
class SegmentationGiven(GivenExperiment):
    """A network of class scores."""

    task: Pixels

    figures: ClassVar = (("pixels", "pixels of the same class"), ("miou", "mean IoU"))
    answers_for_labels: ClassVar = True
    asks: ClassVar = "pixels"

    def read(self, outputs: Any) -> jax.Array:
        """Class of every pixel of the output, (B, h, w) int32.

        Raises:
          ValueError: fewer than two classes, or not as many as the preset names.
        """
        scores = maps(outputs, self.task.output, "classes")
        count = scores.shape[1]
        if count < 2:
            raise ValueError(
                f"`classes` (={count}) must be at least 2 for --task segmentation, which takes the "
                "highest score; give the background a channel too, in a --fn of your own."
            )
        if self.task.classes and len(self.task.classes) != count:
            raise ValueError(
                f"`preset.classes` (={len(self.task.classes)} names) must name the {count} classes "
                "of the network."
            )
        return jnp.argmax(scores, 1).astype(jnp.int32)

    def scorer(self) -> Scorer:
        """Mean IoU and the share of equal pixels."""
        return Overlap()

    def view(self, box: Box | None, min_score: float) -> View:
        """Whole frames, stretched, classes as an overlay."""
        del min_score
        whole_frames(box)
        return ClassMap(self.size, self.task.classes)

    def answers(self, seen: Any) -> dict[str, np.ndarray]:
        """The classes."""
        classes = np.asarray(seen)
        return {"classes": classes, "valid": np.ones(classes.shape[:2], bool)}

    def asked(self, labels: Mapping[str, np.ndarray]) -> int:
        """Pixels."""
        return int(labels["classes"].size)


class Overlap:
    """IoU of every class over all frames: |A and B| / |A or B|."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 0), np.int64)

    def update(self, seen: Any, batch: Batch) -> None:
        """Adds a batch: `seen` and `batch["classes"]`, (B, T, h, w) numbers of classes."""
        real = batch["valid"]
        found, wanted = np.asarray(seen)[real].ravel(), batch["classes"][real].ravel()
        highest = max(found.max(initial=-1), wanted.max(initial=-1))
        size = max(self._counts.shape[1], int(highest) + 1)
        # Classes appear as they are seen.
        counts = np.pad(self._counts, ((0, 0), (0, size - self._counts.shape[1])))
        for row, classes in enumerate((found[found == wanted], found, wanted)):
            counts[row] += np.bincount(classes, minlength=size)
        self._counts = counts

    def result(self) -> dict[str, float]:
        """`miou`, the mean of the classes that either shows, and `pixels`; NaN without a frame."""
        both, found, wanted = self._counts
        either = found + wanted - both
        if not either.any():
            return {"pixels": float("nan"), "miou": float("nan")}
        shown = either > 0
        miou = float((both[shown] / either[shown]).mean())
        return {"pixels": float(both.sum() / wanted.sum()), "miou": miou}
