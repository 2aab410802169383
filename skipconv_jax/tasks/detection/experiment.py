"""Object detection: videos of a road, boxes from anchors, COCO AP."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from skipconv_jax.baselines.feature_flow import FeatureFlow, feature_flow
from skipconv_jax.baselines.flow import join_variables
from skipconv_jax.baselines.flow_training import flow_loss
from skipconv_jax.baselines.interleaved import Interleaved
from skipconv_jax.baselines.video_net import VideoNet
from skipconv_jax.data import detection_pipeline as pipeline
from skipconv_jax.data.augment import normalize
from skipconv_jax.data.detection_pipeline import DetectionAugmentation, Labels
from skipconv_jax.data.labelled_videos import FirstVideos, VideoSource
from skipconv_jax.data.sources import open_videos
from skipconv_jax.models import EfficientDet, efficientdet, init_variables
from skipconv_jax.models.flow_net import FlowNet
from skipconv_jax.tasks.base import DENSE, GATED, Batch, Box, Experiment, whole_frames
from skipconv_jax.tasks.detection.losses import DetectionTask
from skipconv_jax.tasks.detection.metrics import AveragePrecision
from skipconv_jax.tasks.detection.predictions import Predictions
from skipconv_jax.tasks.detection.scorer import DetectionScorer
from skipconv_jax.tasks.detection.view import BoxView
from skipconv_jax.tasks.registry import make_model
from skipconv_jax.training import processes
from skipconv_jax.training.loop import Phase
from skipconv_jax.training.optimizer import optimizer
from skipconv_jax.training.step import create_state
from skipconv_jax.warp.block_matching import BlockMatching

FLOW = "flow"
BASELINES = ("interleaved", "feature_flow", "feature_flow_matching")
"""Copied predictions; Deep Feature Flow with the flow network of the phase `flow`; the same with
block matching, which needs no training."""
# In `answers`, these detections of a network are what should be found.
_SURE = 0.3


@dataclasses.dataclass(frozen=True)
class DetectionExperiment(Experiment):
    """Boxes of objects in whole frames, resized and padded to the network's input."""

    model: EfficientDet
    task: DetectionTask

    figures: ClassVar = (
        ("ap50", "AP@.5"),
        ("ap75", "AP@.75"),
        ("ap_small", "AP, small"),
        ("ap_medium", "AP, medium"),
        ("ap_large", "AP, large"),
        ("recall100", "recall"),
        ("ap", "AP@[.5:.95]"),
    )
    head: ClassVar = ("class_net.predict.*",)
    phases: ClassVar = (DENSE, GATED, FLOW)
    baselines: ClassVar = BASELINES
    answers_for_labels: ClassVar = True

    def clips(self, part: str) -> VideoSource:
        """Videos of `part`; see `Experiment.clips`.

        `config.data.root` is a folder in UA-DETRAC's layout, what `data.prepare` wrote, or a
        COCO-style JSON file beside its frames.
        """
        return open_videos(self.root(), part)

    def first(self, clips: VideoSource, count: int) -> VideoSource:
        """The first videos; all of them for a `count` of 0."""
        return FirstVideos(clips, count) if count else clips

    def steps_per_epoch(self, clips: VideoSource, recipe: ConfigDict) -> int:
        """An epoch sees every window of `clip_length` frames once."""
        return pipeline.steps_per_epoch(clips, recipe.batch, recipe.clip_length)

    def _labels(self) -> Labels:
        return Labels(**self.config.data.labels)

    def train_batches(self, clips: VideoSource, recipe: ConfigDict, seed: int) -> Any:
        """Windows of consecutive frames, one augmentation each."""
        settings = self.config.data.augmentation
        return pipeline.make_train_iterator(
            clips,
            batch=processes.part(recipe.batch),
            length=recipe.clip_length,
            size=self.size,
            seed=seed,
            augmentation=DetectionAugmentation(**(settings or {})),
            labels=self._labels(),
            normalized=False,
            process=processes.here(),
        )

    def test_batches(self, clips: VideoSource, length: int) -> Iterator[Batch]:
        """Consecutive pieces of `length` frames; of 0, whole videos, which memory must hold."""
        return pipeline.make_eval_iterator(
            clips,
            batch=self.config.eval.batch,
            length=length or max(clips.lengths),
            size=self.size,
            labels=self._labels(),
            normalized=False,
        )

    def phase(self, name: str, workdir: Path) -> Phase:
        """As `Experiment.phase`, and 'flow': Deep Feature Flow, from the dense detector."""
        if name != FLOW:
            return super().phase(name, workdir)
        recipe, clips = self.config.flow, self.clips("train")
        steps = recipe.steps or recipe.epochs * self.steps_per_epoch(clips, recipe)
        opt, flow = optimizer(recipe, steps), self._flow_net()
        net = feature_flow(self.model, flow, normalize)
        loss_fn = flow_loss(net, self.task, recipe.pairs, recipe.photometric)

        def start() -> Any:
            frame = jnp.zeros((1, *self.size, 3))
            key = jax.random.fold_in(jax.random.key(self.config.seed), 2)
            joined = join_variables(
                self.trained(workdir / DENSE)["model"], init_variables(flow, key, frame, frame)
            )
            return create_state(joined, {}, opt)

        def batches() -> Any:
            return self.train_batches(clips, recipe, self.config.seed + 2)

        return Phase(name, steps, loss_fn, opt, start, batches)

    def _flow_net(self) -> FlowNet:
        variables = jax.eval_shape(self.model.init, jax.random.key(0), self._normalized())
        levels = jax.eval_shape(
            lambda v, x: self.model.apply(v, x, method="extract"), variables, self._normalized()
        )
        first, second, third = (level.shape[-1] for level in levels[:3])
        return FlowNet((first, second, third), self.config.flow.width)

    def baseline(self, name: str, interval: int) -> VideoNet:
        """A video detector of the paper's Figure 4, a key frame every `interval` frames.

        Raises:
          ValueError: not one of `BASELINES`.
        """
        if name not in BASELINES:
            raise ValueError(f"`baseline` (={name!r}) must be one of {BASELINES}.")
        if name == "interleaved":
            return Interleaved(self.predict, interval)
        flow = self._flow_net() if name == "feature_flow" else BlockMatching()
        made: FeatureFlow = feature_flow(self.model, flow, normalize, interval)
        return made

    def baseline_phase(self, name: str) -> str:
        """'flow' for Deep Feature Flow, whose flow network is trained."""
        return FLOW if name == "feature_flow" else DENSE

    def read(self, outputs: Any) -> Predictions:
        """Detections after suppression, in input pixels."""
        return self.task.predict(outputs)

    def names(self) -> tuple[str, ...]:
        """The classes a label indexes: of the data, or one for all where they are not told apart.

        Without the data the labels are their numbers.
        """
        if self.config.data.labels.agnostic:
            return ("vehicle",)
        try:
            return self.clips("test").classes
        except ValueError:
            return tuple(map(str, range(self.config.model.classes)))

    def scorer(self) -> DetectionScorer:
        """COCO AP."""
        agnostic = self.config.data.labels.agnostic
        drop = self.config.eval.drop_ignored
        return DetectionScorer(AveragePrecision(self.names(), agnostic, drop))

    def view(self, box: Box | None, min_score: float) -> BoxView:
        """Boxes in whole frames."""
        whole_frames(box)
        return BoxView(self.size, self.names(), min_score)

    def answers(self, seen: Any) -> dict[str, np.ndarray]:
        """The detections that are sure enough, as boxes to be found."""
        boxes, scores, labels = map(np.asarray, seen)
        lead = scores.shape[:2]
        return {
            "boxes": boxes,
            "labels": np.where(scores > _SURE, labels, -1),
            "ignored": np.zeros((*lead, 0, 4), np.float32),
            "annotated": np.ones(lead, bool),
            "scale": np.ones(lead, np.float32),
            "valid": np.ones(lead, bool),
        }


def build(config: ConfigDict) -> DetectionExperiment:
    """The experiment of a configuration: EfficientDet by its `scale`, or field by field."""
    detector = make_model(config, {"efficientdet": _efficientdet})
    size = (config.input.height, config.input.width)
    task = DetectionTask(size, detector.levels, detector.anchor_scale, **config.detection)
    return DetectionExperiment(config, detector, task)


def _efficientdet(scale: str | None = None, **settings: Any) -> EfficientDet:
    return efficientdet(scale, **settings) if scale else EfficientDet(**settings)
