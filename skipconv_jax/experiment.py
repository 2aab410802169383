"""What a configuration stands for: network, task, data, and the phases of training."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from skipconv_jax import SkipNet, macs, skip
from skipconv_jax.config import skip_options
from skipconv_jax.data.augment import PoseAugmentation, normalize
from skipconv_jax.data.clips import PoseClip
from skipconv_jax.data.pipeline import make_train_iterator
from skipconv_jax.data.sources import open_clips
from skipconv_jax.models import HRNet, init_variables
from skipconv_jax.models.convert import from_torch, load_state
from skipconv_jax.tasks.pose import PoseTask
from skipconv_jax.training.checkpoints import Checkpoints
from skipconv_jax.training.loop import Phase
from skipconv_jax.training.optimizer import optimizer
from skipconv_jax.training.step import TrainState, create_state, dense_loss, gated_loss

Tree = Any
DENSE, GATED = "dense", "gated"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything built from one configuration; functions take uint8 frames `(B, H, W, 3)`.

    Attributes:
      config: the configuration.
      model: the network, plain Flax.
      task: losses and predictions of its outputs.
    """

    config: ConfigDict
    model: nn.Module
    task: PoseTask

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        return self.config.input.height, self.config.input.width

    def frame(self, streams: int = 1) -> jax.ShapeDtypeStruct:
        """Shape of a frame of B streams."""
        return jax.ShapeDtypeStruct((streams, *self.size, 3), jnp.uint8)

    def variables(self, seed: int | None = None) -> dict[str, Tree]:
        """Freshly initialised variables of the network."""
        key = jax.random.key(self.config.seed if seed is None else seed)
        x = jax.ShapeDtypeStruct((1, *self.size, 3), jnp.float32)
        return init_variables(self.model, key, x)

    def initial_variables(self) -> dict[str, Tree]:
        """What training starts from: random, or the public checkpoint `config.init_from`.

        A head for another number of joints is not taken over.
        """
        variables = self.variables()
        if not self.config.init_from:
            return variables
        state = load_state(self.config.init_from)
        same_head = len(state.get("final_layer.bias", ())) == self.config.model.joints
        return from_torch(state, variables, replace=() if same_head else ["final_layer.*"])

    def predict(self, variables: Tree, frames: jax.Array) -> jax.Array:
        """The network as it serves: running statistics, outputs only."""
        outputs: Any = self.model.apply(variables, normalize(frames))
        return outputs

    def forward(self, batch_norm: str) -> Callable[..., tuple[jax.Array, Tree]]:
        """The network as it trains: `(variables, frames) -> (outputs, statistics)`.

        Args:
          batch_norm: 'train' takes and updates the batch's statistics, 'frozen' the running ones.

        Raises:
          ValueError: neither of these.
        """
        if batch_norm not in ("train", "frozen"):
            raise ValueError(f"`batch_norm` (={batch_norm!r}) must be 'train' or 'frozen'.")

        def run(variables: Tree, frames: jax.Array) -> tuple[jax.Array, Tree]:
            stats = {k: v for k, v in variables.items() if k != "params"}
            x = normalize(frames)
            outputs: Any
            if batch_norm == "frozen":
                outputs = self.model.apply(variables, x)
                return outputs, stats
            outputs, new = self.model.apply(variables, x, train=True, mutable=list(stats))
            return outputs, dict(new)

        return run

    def net(self, fn: Callable[..., Any] | None = None, **options: Any) -> SkipNet:
        """The skipped network with the configuration's rules; `options` replace them."""
        return skip(fn or self.predict, **{**skip_options(self.config), **options})

    def table(self, net: SkipNet | None = None, streams: int = 1) -> macs.Table:
        """Multiply-accumulates of every convolution."""
        x = jax.ShapeDtypeStruct((1, *self.size, 3), jnp.float32)
        variables = jax.eval_shape(self.model.init, jax.random.key(0), x)
        return (net or self.net()).table(variables, self.frame(streams))

    def clips(self, part: str) -> list[PoseClip]:
        """Clips of the split's `part`: 'train' or 'test'.

        `config.data.root` is a folder in JHMDB's layout, what `data.prepare` wrote, or a COCO-style
        JSON file beside its frames.

        Raises:
          ValueError: no data in `config.data.root`, with what to fetch and what runs without it.
        """
        data = self.config.data
        if not Path(data.root).exists():
            raise ValueError(
                f"`config.data.root` (={data.root!r}) must hold the data. {data.fetch}"
            )
        return list(open_clips(data.root, part, data.split, data.subset))

    def phase(self, name: str, workdir: Path) -> Phase:
        """One phase of training: 'dense', or 'gated' from the newest dense checkpoint in `workdir`.

        Raises:
          ValueError: an unknown phase.
        """
        if name not in (DENSE, GATED):
            raise ValueError(f"`phase` (={name!r}) must be {DENSE!r} or {GATED!r}.")
        recipe = self.config[name]
        clips = self._long_enough(self.clips("train"), recipe.clip_length)
        # An epoch is as many frames as the training clips hold.
        frames_per_step = recipe.batch * recipe.clip_length
        per_epoch = max(1, sum(clip.length for clip in clips) // frames_per_step)
        steps = recipe.steps or recipe.epochs * per_epoch
        opt = optimizer(recipe, steps)
        make_loss = self._dense if name == DENSE else self._gated
        loss_fn, initial = make_loss(recipe, workdir)

        def batches() -> Any:
            return make_train_iterator(
                clips,
                batch=recipe.batch,
                length=recipe.clip_length,
                size=self.size,
                # The phases see the clips in different orders.
                seed=self.config.seed + (name == GATED),
                augmentation=self._augmentation(),
                margin=self.config.data.margin,
                normalized=False,
                cache=self.config.data.cache,
            )

        def start() -> TrainState:
            variables, gates = initial()
            return create_state(variables, gates, opt)

        return Phase(name, steps, loss_fn, opt, start, batches)

    def _long_enough(self, clips: Sequence[PoseClip], length: int) -> list[PoseClip]:
        return [clip for clip in clips if clip.length >= length]

    def _augmentation(self) -> PoseAugmentation | None:
        settings = self.config.data.augmentation
        return PoseAugmentation(**settings) if settings else None

    def _dense(self, recipe: ConfigDict, workdir: Path) -> tuple[Any, Callable[[], Any]]:
        del recipe, workdir
        return dense_loss(self.forward("train"), self.task), lambda: (self.initial_variables(), {})

    def _gated(self, recipe: ConfigDict, workdir: Path) -> tuple[Any, Callable[[], Any]]:
        net = self.net(self.forward(recipe.batch_norm))
        loss_fn = gated_loss(net, self.table(net), self.task, recipe.beta, recipe.remat)

        def initial() -> tuple[Tree, Tree]:
            checkpoints = Checkpoints(workdir / DENSE / "checkpoints")
            _, weights = checkpoints.weights()
            checkpoints.close()
            key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
            params, _ = net.init(weights["model"], self.frame(), key=key)
            return weights["model"], params["gates"]

        return loss_fn, initial


def build(config: ConfigDict) -> Experiment:
    """The experiment of a configuration.

    Raises:
      ValueError: an unknown model or task.
    """
    if config.task != "pose":
        raise ValueError(f"`config.task` (={config.task!r}) must be 'pose'.")
    settings = dict(config.model)
    name = settings.pop("name")
    if name != "hrnet":
        raise ValueError(f"`config.model.name` (={name!r}) must be 'hrnet'.")
    return Experiment(config, HRNet(**settings), PoseTask(sigma=config.sigma))
