"""Classification of videos: TSN, the mean logits of T segments, skipped between segments."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from skipconv_jax.data import actions
from skipconv_jax.data.clips import PoseClip
from skipconv_jax.data.jhmdb_folder import JhmdbFolder
from skipconv_jax.data.sources import open_clips
from skipconv_jax.models import ResNet
from skipconv_jax.tasks.base import Batch, Box, Experiment, whole_frames
from skipconv_jax.tasks.classification.losses import ClassificationTask
from skipconv_jax.tasks.classification.metrics import Top1
from skipconv_jax.tasks.classification.view import ActionView
from skipconv_jax.tasks.registry import make_model
from skipconv_jax.training import processes


@dataclasses.dataclass(frozen=True)
class ActionExperiment(Experiment):
    """The action of a video; `model` is the frame network, of which TSN averages the logits."""

    task: ClassificationTask

    figures: ClassVar = (("mean_class", "mean over classes"), ("top1", "top-1"))
    head: ClassVar = ("fc.*",)
    per_video: ClassVar = True

    def names(self) -> list[str]:
        """The actions, in the order of the labels."""
        return JhmdbFolder(self.root()).actions()

    def clips(self, part: str) -> Sequence[PoseClip]:
        """Videos of the split's `part`; see `Experiment.clips`."""
        data = self.config.data
        return open_clips(self.root(), part, data.split, data.subset)

    def first(self, clips: Sequence[PoseClip], count: int) -> Sequence[PoseClip]:
        """The first videos; all of them for a `count` of 0."""
        return clips[: count or None]

    def steps_per_epoch(self, clips: Sequence[PoseClip], recipe: ConfigDict) -> int:
        """An epoch sees every video once."""
        return max(1, len(clips) // recipe.batch)

    def train_batches(self, clips: Sequence[PoseClip], recipe: ConfigDict, seed: int) -> Any:
        """Videos of `clip_length` random segments."""
        data = self.config.data
        return actions.make_train_iterator(
            clips,
            self.names(),
            batch=processes.part(recipe.batch),
            segments=recipe.clip_length,
            size=self.size,
            short_side=data.short_side,
            seed=seed,
            cache=data.cache,
            process=processes.here(),
        )

    def tests(self) -> dict[str, int]:
        """A run per number of segments; the first segment of a video is the reference frame."""
        return {f"TSN-{segments}": segments for segments in self.config.eval.segments}

    def test_batches(self, clips: Sequence[PoseClip], length: int) -> Iterator[Batch]:
        """One pass over the videos, `length` segments each."""
        return actions.make_eval_iterator(
            clips,
            self.names(),
            batch=self.config.eval.batch,
            segments=length,
            size=self.size,
            short_side=self.config.data.short_side,
        )

    def read(self, outputs: jax.Array) -> jax.Array:
        """The logits `(B, classes)`."""
        return outputs

    def scorer(self) -> "ActionScorer":
        """Top-1 of the consensus."""
        return ActionScorer(self.task.classes)

    def view(self, box: Box | None, min_score: float) -> ActionView:
        """The centre crop of whole frames."""
        whole_frames(box)
        return ActionView(self.size, tuple(self.names()))


def build(config: ConfigDict) -> ActionExperiment:
    """The experiment of a configuration."""
    model = make_model(config, {"resnet": ResNet})
    return ActionExperiment(config, model, ClassificationTask(model.classes))


class ActionScorer:
    """Top-1 of the mean logits of a video's segments."""

    def __init__(self, classes: int) -> None:
        self._top1 = Top1(classes)

    def update(self, seen: Any, batch: Batch) -> None:
        """Adds videos; `seen` are logits `(B, T, classes)`."""
        logits = np.asarray(seen).mean(axis=1)
        self._top1.update(logits, batch["label"][:, 0], batch["valid"][:, 0])

    def result(self) -> dict[str, float]:
        """As `Top1.result`."""
        return self._top1.result()
