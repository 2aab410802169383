"""Video classification as a configuration describes it: TSN dense, and skipped between segments."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from skipconv_jax import macs
from skipconv_jax.data import actions
from skipconv_jax.data.clips import PoseClip
from skipconv_jax.data.jhmdb_folder import JhmdbFolder
from skipconv_jax.experiment import DENSE, GATED, Experiment
from skipconv_jax.models import ResNet
from skipconv_jax.models.convert import from_torch, load_state
from skipconv_jax.models.tsn import consensus
from skipconv_jax.streaming import make_streamer
from skipconv_jax.tasks.classification import ClassificationTask, Top1
from skipconv_jax.training.loop import Phase
from skipconv_jax.training.optimizer import optimizer
from skipconv_jax.training.step import create_state

Tree = Any


@dataclasses.dataclass(frozen=True)
class Score:
    """What a video network reached.

    Attributes:
      label: which network, on how many segments.
      top1: share of videos classified rightly.
      gmac: per video, gates not counted.
      dense_gmac: per video of the dense network.
      gate_gmac: that the gates spend per video.
      firing: per stage, share of its multiply-accumulates spent.
      videos: number of videos.
    """

    label: str
    top1: float
    gmac: float
    dense_gmac: float
    gate_gmac: float
    firing: dict[str, float]
    videos: int


@dataclasses.dataclass(frozen=True)
class ActionExperiment(Experiment):
    """An `Experiment` whose task is the action of a video; frames are `(B, H, W, 3)` uint8.

    `model` is the frame network, of which `TSN` averages the logits.
    """

    def names(self) -> list[str]:
        """The actions, in the order of the labels."""
        return JhmdbFolder(Path(self.config.data.root)).actions()

    def initial_variables(self) -> dict[str, Tree]:
        """What training starts from: random, or the torchvision checkpoint `config.init_from`.

        A classifier of another number of classes is not taken over.
        """
        variables = self.variables()
        if not self.config.init_from:
            return variables
        state = load_state(self.config.init_from)
        same_head = len(state.get("fc.bias", ())) == self.config.model.classes
        return from_torch(state, variables, replace=() if same_head else ["fc.*"])

    def phase(self, name: str, workdir: Path) -> Phase:
        """One phase of training, `clip_length` segments a video; see `Experiment.phase`."""
        if name not in (DENSE, GATED):
            raise ValueError(f"`phase` (={name!r}) must be {DENSE!r} or {GATED!r}.")
        config, recipe = self.config, self.config[name]
        clips = self.clips("train")
        steps = recipe.steps or recipe.epochs * max(1, len(clips) // recipe.batch)
        opt = optimizer(recipe, steps)
        make_loss = self._dense if name == DENSE else self._gated
        loss_fn, initial = make_loss(recipe, workdir)

        def batches() -> Any:
            return actions.make_train_iterator(
                clips,
                self.names(),
                batch=recipe.batch,
                segments=recipe.clip_length,
                size=self.size,
                short_side=config.data.short_side,
                seed=config.seed + (name == GATED),
                cache=config.data.cache,
            )

        def start() -> Any:
            variables, gates = initial()
            return create_state(variables, gates, opt)

        return Phase(name, steps, loss_fn, opt, start, batches)

    def test_batches(self, clips: Sequence[PoseClip], segments: int) -> Any:
        """One pass over the videos, T segments each."""
        return actions.make_eval_iterator(
            clips,
            self.names(),
            batch=self.config.eval.batch,
            segments=segments,
            size=self.size,
            short_side=self.config.data.short_side,
        )


def build(config: ConfigDict) -> ActionExperiment:
    """The experiment of a configuration whose task is `classification`.

    Raises:
      ValueError: another task or model.
    """
    if config.task != "classification":
        raise ValueError(f"`config.task` (={config.task!r}) must be 'classification'.")
    settings = dict(config.model)
    name = settings.pop("name")
    if name != "resnet":
        raise ValueError(f"`config.model.name` (={name!r}) must be 'resnet'.")
    model = ResNet(**settings)
    # The pose task's place holds this one: training asks for losses and predictions only.
    return ActionExperiment(config, model, ClassificationTask(model.classes))  # type: ignore[arg-type]


def evaluate_dense(
    experiment: ActionExperiment, variables: Tree, clips: Sequence[PoseClip], segments: int
) -> Score:
    """The dense network: consensus of T segments of every video."""
    table, top1 = experiment.table(), Top1(experiment.model.classes)

    def logits(variables: Tree, frames: jax.Array) -> jax.Array:
        flat = experiment.predict(variables, frames.reshape(-1, *frames.shape[2:]))
        return consensus(flat.reshape(*frames.shape[:2], -1))

    run = jax.jit(logits)
    for batch in experiment.test_batches(clips, segments):
        scores = run(variables, batch["frames"])
        top1.update(scores, batch["label"][:, 0], batch["valid"][:, 0])
    gmac = segments * table.macs / macs.GIGA
    stages = dict.fromkeys(table.stages(), 1.0)
    share = top1.result()["top1"]
    return Score(f"TSN-{segments}", share, gmac, gmac, 0.0, stages, len(clips))


def evaluate_skipped(
    experiment: ActionExperiment, params: Tree, clips: Sequence[PoseClip], segments: int
) -> Score:
    """The skipped network from segment to segment, the first one a reference frame."""
    streams, net = experiment.config.eval.batch, experiment.net()
    table, top1 = experiment.table(net, streams), Top1(experiment.model.classes)
    streamer = make_streamer(net, table, lambda outputs: outputs)
    spent, stages = 0.0, dict.fromkeys(table.stages(), 0.0)
    for batch in experiment.test_batches(clips, segments):
        valid = batch["valid"][:, 0]
        _, state = net.init(params["model"], experiment.frame(streams), key=jax.random.key(0))
        _, reading = streamer(params, state, np.swapaxes(batch["frames"], 0, 1))
        scores = np.asarray(reading.outputs).mean(axis=0)
        top1.update(scores, batch["label"][:, 0], valid)
        spent += float(np.asarray(reading.macs, np.float64).sum(axis=0)[valid].sum())
        for stage, share in reading.firing.items():
            stages[stage] += float(np.asarray(share, np.float64).mean(axis=0)[valid].sum())
    videos = len(clips)
    return Score(
        f"TSN-{segments} + Skip-Conv",
        top1.result()["top1"],
        spent / videos / macs.GIGA,
        segments * table.macs / macs.GIGA,
        segments * table.gate_macs / macs.GIGA,
        {stage: total / videos for stage, total in stages.items()},
        videos,
    )
