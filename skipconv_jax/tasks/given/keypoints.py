"""Pose with a network that is brought: keypoints of heatmaps (B, J, h, w), PCK."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.presets import Pixels
from skipconv_jax.tasks.base import Batch, Box, Scorer, View
from skipconv_jax.tasks.given.base import GivenExperiment, maps
from skipconv_jax.tasks.given.view import Keypoints
from skipconv_jax.tasks.pose.metrics import Pck
from skipconv_jax.tasks.pose.targets import decode

NEAR = 0.05
"""A keypoint agrees within this share of the input's longer side."""


@dataclasses.dataclass(frozen=True)
class PoseGiven(GivenExperiment):
    """A network of heatmaps, one person in the frame or in `--box`."""

    task: Pixels

    figures: ClassVar = (("mean", f"PCK within {NEAR:.0%} of the input"),)
    answers_for_labels: ClassVar = True
    asks: ClassVar = "keypoints"

    def read(self, outputs: Any) -> tuple[jax.Array, jax.Array]:
        """Keypoints (B, J, 2) x, y in input pixels and their confidence (B, J).

        As `tasks.pose`: the maximum, a quarter pixel towards the higher neighbour; position p of a
        heatmap stands for p W / w.
        """
        heatmaps = maps(outputs, self.task.output, "keypoints")
        found, scores = decode(jnp.moveaxis(heatmaps, 1, -1), stride=1)
        h, w = heatmaps.shape[2:]
        pixels = np.asarray([[[self.size[1] / w, self.size[0] / h]]], np.float32)
        return found * pixels, scores

    def scorer(self) -> Scorer:
        """PCK."""
        return KeypointScorer()

    def view(self, box: Box | None, min_score: float) -> View:
        """Keypoints in a crop around the box, or in the whole frame."""
        return Keypoints(self.size, box, min_score, self.task.limbs)

    def answers(self, seen: Any) -> dict[str, np.ndarray]:
        """The keypoints that are sure enough."""
        joints, scores = map(np.asarray, seen)
        lead = scores.shape[:2]
        return {
            "joints": joints,
            "visible": scores > self.task.sure,
            "size": np.full(lead, max(self.size), np.float32),
            "valid": np.ones(lead, bool),
        }

    def asked(self, labels: Mapping[str, np.ndarray]) -> int:
        """Keypoints."""
        return int(labels["visible"].sum())


class KeypointScorer:
    """PCK of however many keypoints the first batch has."""

    def __init__(self) -> None:
        self._pck: Pck | None = None

    def update(self, seen: Any, batch: Batch) -> None:
        """Adds a batch."""
        joints = np.asarray(seen[0])
        if self._pck is None:
            self._pck = Pck(NEAR, names=[str(j) for j in range(joints.shape[-2])])
        counted = batch["visible"] & batch["valid"][..., None]
        self._pck.update(joints, batch["joints"], batch["size"], counted)

    def result(self) -> dict[str, float]:
        """PCK of every keypoint and `mean`, in [0, 1]; NaN where none was sure."""
        return {"mean": float("nan")} if self._pck is None else self._pck.result()
