"""Pose estimation: clips of one person, heatmaps, PCK."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from skipconv_jax.data import pipeline
from skipconv_jax.data.augment import PoseAugmentation
from skipconv_jax.data.clips import PoseClip, lengths_of
from skipconv_jax.data.skeleton import JOINTS
from skipconv_jax.data.sources import open_clips
from skipconv_jax.models import HRNet
from skipconv_jax.tasks.base import Batch, Box, Experiment
from skipconv_jax.tasks.pose.losses import PoseTask
from skipconv_jax.tasks.pose.metrics import GROUPS, Pck
from skipconv_jax.tasks.pose.view import PoseView
from skipconv_jax.tasks.registry import make_model
from skipconv_jax.training import processes

# In `answers`, a joint agrees that lies within this share of the frame's longer side, which is
# PCK@.2 of a box of this share of it.
_NEAR = 0.05 / 0.2


@dataclasses.dataclass(frozen=True)
class PoseExperiment(Experiment):
    """Joints of one person per clip, on crops around the person."""

    task: PoseTask

    figures: ClassVar = (
        *((joint, joint) for joint in JOINTS),
        *((f"group/{name}", f"group: {name}") for name in GROUPS),
        ("mean7", "PCK@.2, mean of 7 groups"),
        ("mean13", "PCK@.2, mean of 13"),
        ("mean15", "PCK@.2, mean of 15"),
    )
    head: ClassVar = ("final_layer.*",)
    answers_for_labels: ClassVar = True

    def clips(self, part: str) -> Sequence[PoseClip]:
        """Clips of the split's `part`; see `Experiment.clips`.

        `config.data.root` is a folder in JHMDB's layout, what `data.prepare` wrote, or a COCO-style
        JSON file beside its frames.
        """
        data = self.config.data
        return open_clips(self.root(), part, data.split, data.subset)

    def first(self, clips: Sequence[PoseClip], count: int) -> Sequence[PoseClip]:
        """The first clips; all of them for a `count` of 0."""
        return clips[: count or None]

    def steps_per_epoch(self, clips: Sequence[PoseClip], recipe: ConfigDict) -> int:
        """An epoch is as many frames as the training clips hold."""
        frames = sum(lengths_of(self._long_enough(clips, recipe)))
        return max(1, frames // (recipe.batch * recipe.clip_length))

    def _long_enough(self, clips: Sequence[PoseClip], recipe: ConfigDict) -> Sequence[PoseClip]:
        lengths = lengths_of(clips)
        if recipe.clip_length > max(lengths):
            raise ValueError(
                f"`clip_length` (={recipe.clip_length}) must not exceed the longest training clip "
                f"({max(lengths)} frames)."
            )
        # Handed on as they are where all will do: a prepared set is read clip by clip.
        if recipe.clip_length <= min(lengths):
            return clips
        fitting = zip(clips, lengths, strict=True)
        return [clip for clip, length in fitting if length >= recipe.clip_length]

    def train_batches(self, clips: Sequence[PoseClip], recipe: ConfigDict, seed: int) -> Any:
        """Clips of T frames, one augmentation each."""
        data = self.config.data
        return pipeline.make_train_iterator(
            self._long_enough(clips, recipe),
            batch=processes.part(recipe.batch),
            length=recipe.clip_length,
            size=self.size,
            seed=seed,
            augmentation=self._augmentation(),
            margin=data.margin,
            normalized=False,
            cache=data.cache,
            process=processes.here(),
        )

    def _augmentation(self) -> PoseAugmentation | None:
        settings = self.config.data.augmentation
        return PoseAugmentation(**settings) if settings else None

    def test_batches(self, clips: Sequence[PoseClip], length: int) -> Iterator[Batch]:
        """Consecutive pieces of `length` frames, or whole clips."""
        return pipeline.make_eval_iterator(
            clips,
            batch=self.config.eval.batch,
            length=length or None,
            size=self.size,
            margin=self.config.data.margin,
            normalized=False,
        )

    def read(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Joints `(B, 15, 2)` in input pixels and their confidence `(B, 15)`."""
        return self.task.predict(outputs)

    def scorer(self) -> "PoseScorer":
        """PCK@.2."""
        return PoseScorer(self.config.eval.convention)

    def view(self, box: Box | None, min_score: float) -> PoseView:
        """Joints in a crop around the box, or in the whole frame."""
        return PoseView(self.size, box, min_score)

    def answers(self, seen: Any) -> dict[str, np.ndarray]:
        """The joints the network found."""
        joints = np.asarray(seen[0])
        lead = joints.shape[:2]
        return {
            "joints": joints,
            "visible": np.ones(joints.shape[:3], bool),
            "size": np.full(lead, _NEAR * max(self.size), np.float32),
            "scale": np.ones(lead, np.float32),
            "valid": np.ones(lead, bool),
        }


def build(config: ConfigDict) -> PoseExperiment:
    """The experiment of a configuration."""
    model = make_model(config, {"hrnet": HRNet})
    return PoseExperiment(config, model, PoseTask(sigma=config.sigma))


class PoseScorer:
    """PCK of the joints that are annotated, on frames that are no padding."""

    def __init__(self, convention: str) -> None:
        self._pck = Pck(convention=convention)

    def update(self, seen: Any, batch: Batch) -> None:
        """Adds a batch."""
        counted = batch["visible"] & batch["valid"][..., None]
        joints = np.asarray(seen[0])
        self._pck.update(joints, batch["joints"], batch["size"], counted, batch["scale"])

    def result(self) -> dict[str, float]:
        """As `Pck.result`."""
        return self._pck.result()
