"""What every task shares: a network, its skipped form, phases of training, scores, a view.

A task is a folder beside this file, or a module of your own: a function `build(config)` that
returns an `Experiment`. `config.task` names it, and nothing else knows of it (`tasks.registry`).
"""

import abc
import dataclasses
import fnmatch
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from skipconv_jax import SkipNet, macs, skip
from skipconv_jax.config import skip_options
from skipconv_jax.data.augment import normalize
from skipconv_jax.extras import required
from skipconv_jax.plans import once

# A network that somebody brings is streamed without Flax, Optax and Orbax: what trains, and what
# reads and makes weights of our own networks, is imported where it is done.
if TYPE_CHECKING:
    from skipconv_jax.baselines.video_net import VideoNet
    from skipconv_jax.training.loop import Phase
    from skipconv_jax.training.step import Task, TrainState

Tree = Any
Batch = Mapping[str, np.ndarray]
DENSE, GATED = "dense", "gated"
Box = tuple[float, float, float, float]


class Scorer(Protocol):
    """Adds up how good the outputs of a test run are."""

    def update(self, seen: Any, batch: Batch) -> None:
        """Adds a batch: its truth, and what `Experiment.read` kept of its outputs `(B, T, ...)`."""
        ...

    def result(self) -> dict[str, float]:
        """Named figures in [0, 1]."""
        ...


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


@dataclasses.dataclass(frozen=True)
class Experiment(abc.ABC):
    """Everything built from one configuration; functions take uint8 frames `(B, H, W, 3)`.

    A subclass per task says what the data are, how they are fed, and how outputs are scored.

    Attributes:
      config: the configuration.
      model: the network: a Flax module, or anything with `init(key, x)` and `apply(variables, x)`.
      task: losses and predictions of its outputs.
    """

    config: ConfigDict
    model: Any
    task: Any

    figures: ClassVar[tuple[tuple[str, str], ...]]
    """(key of a score, its name in a table) of what a report shows, the headline last."""
    head: ClassVar[tuple[str, ...]]
    """Patterns of checkpoint keys whose shapes depend on the number of joints or classes."""
    per_video: ClassVar[bool] = False
    """Whether the field reports costs per video rather than per frame."""
    phases: ClassVar[tuple[str, ...]] = (DENSE, GATED)
    """Phases of training that `phase` makes."""
    baselines: ClassVar[tuple[str, ...]] = ()
    """Video networks to compare with that `baseline` makes."""
    answers_for_labels: ClassVar[bool] = False
    """Whether `answers` makes labels of what a network says."""

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
        if not _is_flax(self.model):
            return dict(self.model.init(key, jnp.zeros((1, *self.size, 3))))
        from skipconv_jax.models import init_variables

        return init_variables(self.model, key, self._normalized())

    def _normalized(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *self.size, 3), jnp.float32)

    def initial_variables(self) -> dict[str, Tree]:
        """What training starts from: random, or the public checkpoint `config.init_from`.

        A head for another number of joints or classes is not taken over.
        """
        variables = self.variables()
        if not self.config.init_from:
            return variables
        from skipconv_jax.models.convert import from_torch, load_state, to_torch

        state, own = load_state(self.config.init_from), to_torch(variables)
        differs = any(
            np.shape(state.get(key, ())) != np.shape(own[key])
            for pattern in self.head
            for key in fnmatch.filter(own, pattern)
        )
        return from_torch(state, variables, replace=self.head if differs else ())

    def predict(self, variables: Tree, frames: jax.Array) -> Any:
        """The network as it serves: running statistics, outputs only."""
        return self.model.apply(variables, normalize(frames))

    def forward(self, batch_norm: str) -> Callable[..., tuple[Any, Tree]]:
        """The network as it trains: `(variables, frames) -> (outputs, statistics)`.

        Args:
          batch_norm: 'train' takes and updates the batch's statistics, 'frozen' the running ones;
            a network that is no Flax module has none.

        Raises:
          ValueError: neither of these.
        """
        if batch_norm not in ("train", "frozen"):
            raise ValueError(f"`batch_norm` (={batch_norm!r}) must be 'train' or 'frozen'.")

        def run(variables: Tree, frames: jax.Array) -> tuple[Any, Tree]:
            stats = {k: v for k, v in variables.items() if k != "params"}
            x = normalize(frames)
            outputs: Any
            if batch_norm == "frozen" or not _is_flax(self.model):
                outputs = self.model.apply(variables, x)
                return outputs, stats
            outputs, new = self.model.apply(variables, x, train=True, mutable=list(stats))
            return outputs, dict(new)

        return run

    def net(self, fn: Callable[..., Any] | None = None, **options: Any) -> SkipNet:
        """The skipped network with the configuration's rules; `options` replace them."""
        return skip(fn or self.predict, **{**skip_options(self.config), **options})

    def traced_net(self, variables: Tree, streams: int = 1) -> SkipNet:
        """`net()`, traced already for frames of so many streams; who asks again gets the same one.

        Gates, a plan and its table all need the trace, which takes seconds of a deep network.
        """
        if streams not in self._traced:
            self._traced[streams] = once(self.net(), variables, self.frame(streams))
        return self._traced[streams]

    @functools.cached_property
    def _traced(self) -> dict[int, SkipNet]:
        return {}

    def table(self, net: SkipNet | None = None, streams: int = 1) -> macs.Table:
        """Multiply-accumulates of every convolution."""
        variables = jax.eval_shape(self.model.init, jax.random.key(0), self._normalized())
        return (net or self.net()).table(variables, self.frame(streams))

    def phase(self, name: str, workdir: Path) -> "Phase":
        """One phase of training: 'dense', or 'gated' from the newest dense checkpoint in `workdir`.

        Raises:
          ValueError: none of `phases`.
        """
        if name not in (DENSE, GATED):
            raise ValueError(f"`phase` (={name!r}) must be one of {self.phases}.")
        with required():
            from skipconv_jax.training.loop import Phase
            from skipconv_jax.training.optimizer import optimizer
            from skipconv_jax.training.step import create_state
        recipe, clips = self.config[name], self.clips("train")
        steps = recipe.steps or recipe.epochs * self.steps_per_epoch(clips, recipe)
        opt = optimizer(recipe, steps)
        make_loss = self._dense if name == DENSE else self._gated
        loss_fn, initial = make_loss(recipe, workdir)

        def batches() -> Any:
            # The phases see the clips in different orders.
            return self.train_batches(clips, recipe, self.config.seed + (name == GATED))

        def start() -> "TrainState":
            variables, gates = initial()
            return create_state(variables, gates, opt)

        return Phase(name, steps, loss_fn, opt, start, batches)

    def _dense(self, recipe: ConfigDict, workdir: Path) -> tuple[Any, Callable[[], Any]]:
        from skipconv_jax.training.step import dense_loss

        del workdir
        task: Task = self.task
        loss_fn = dense_loss(self.forward("train"), task, recipe.equivariance)
        return loss_fn, lambda: (self.initial_variables(), {})

    def _gated(self, recipe: ConfigDict, workdir: Path) -> tuple[Any, Callable[[], Any]]:
        from skipconv_jax.training.step import gated_loss

        net = self.net(self.forward(recipe.batch_norm))
        loss_fn = gated_loss(net, self.table(net), self.task, recipe.beta, recipe.remat)

        def initial() -> tuple[Tree, Tree]:
            weights = self.trained(workdir / DENSE)
            key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
            return weights["model"], net.init_gates(weights["model"], self.frame(), key=key)

        return loss_fn, initial

    def trained(self, folder: Path) -> dict[str, Tree]:
        """Weights of a phase's newest checkpoint.

        Raises:
          ValueError: there is none.
        """
        if not (folder / "checkpoints").is_dir():
            raise ValueError(
                f"`workdir` (={str(folder.parent)!r}) must hold the trained phase {folder.name!r}; "
                f"train it first with --phase {folder.name}."
            )
        with required():
            from skipconv_jax.training.checkpoints import Checkpoints
        checkpoints = Checkpoints(folder / "checkpoints")
        _, weights = checkpoints.weights()
        checkpoints.close()
        return weights

    def root(self) -> Path:
        """The folder of the data.

        Raises:
          ValueError: it is not there, with what to fetch and what runs without it.
        """
        data = self.config.data
        if not Path(data.root).exists():
            raise ValueError(
                f"`config.data.root` (={data.root!r}) must hold the data. {data.fetch}"
            )
        return Path(data.root)

    @abc.abstractmethod
    def clips(self, part: str) -> Any:
        """Clips or videos of the split's `part`: 'train' or 'test'.

        Raises:
          ValueError: no data in `config.data.root`, with what to fetch and what runs without it.
        """

    def fit(self, image: np.ndarray) -> np.ndarray:
        """A frame of any size as the network's input `(H, W, 3)`, to calibrate on."""
        resized: np.ndarray = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)
        return resized

    @abc.abstractmethod
    def first(self, clips: Any, count: int) -> Any:
        """The first clips or videos; all of them for a `count` of 0."""

    @abc.abstractmethod
    def steps_per_epoch(self, clips: Any, recipe: ConfigDict) -> int:
        """Steps of an epoch."""

    @abc.abstractmethod
    def train_batches(self, clips: Any, recipe: ConfigDict, seed: int) -> Any:
        """Endless batches of a phase; every array is `(B, T, ...)`."""

    def tests(self) -> dict[str, int]:
        """The runs of a test: what each is called, and the frames from one reference frame to the
        next (0: a whole clip)."""
        return {"": self.config.eval.reset_every}

    @abc.abstractmethod
    def test_batches(self, clips: Any, length: int) -> Iterator[Batch]:
        """One pass over all clips in pieces of `length` frames, with `valid` `(B, T)`."""

    @abc.abstractmethod
    def read(self, outputs: Any) -> Any:
        """What of a frame's outputs leaves the device, for scores and pictures."""

    @abc.abstractmethod
    def scorer(self) -> Scorer:
        """A new, empty score."""

    @abc.abstractmethod
    def view(self, box: Box | None, min_score: float) -> View:
        """How the task looks at a stream.

        Args:
          box: x1, y1, x2, y2 of what to look at in frame pixels; None for the whole frame.
          min_score: answers with less confidence are not drawn.

        Raises:
          ValueError: a box for a task that looks at whole frames.
        """

    def answers(self, seen: Any) -> dict[str, np.ndarray]:
        """What a network says, as labels: `seen` is what `read` kept of frames `(T, B, ...)`.

        Raises:
          ValueError: the task makes no labels of answers (`answers_for_labels`).
        """
        raise ValueError(f"`task` (={self.config.task!r}) must come with labels of its own.")

    def disagreement(self, outputs: Any, dense: Any) -> tuple[jax.Array, jax.Array]:
        """How far outputs are from the dense network's, and what that is relative to, `(B,)` each.

        What calibration and `fit` make small without labels: pure, and differentiable in `outputs`.
        Here the squares of all outputs; a task whose outputs hold much that nobody reads says what
        counts instead.
        """
        return squared_error(outputs, dense)

    def baseline(self, name: str, interval: int) -> "VideoNet":
        """A video network to compare with, a key frame every `interval` frames.

        Raises:
          ValueError: none of `baselines`.
        """
        raise ValueError(
            f"`baseline` (={name!r}) must be left out for the task {self.config.task!r}, which "
            f"has {'none' if not self.baselines else ', '.join(self.baselines)}."
        )

    def baseline_phase(self, name: str) -> str:
        """The phase of training whose weights a baseline runs with."""
        del name
        return DENSE


def squared_error(outputs: Any, dense: Any) -> tuple[jax.Array, jax.Array]:
    """||y - y'||^2 and ||y'||^2 over all leaves, `(B,)` each."""

    def squares(tree: Any) -> jax.Array:
        parts = [jnp.square(a.astype(jnp.float32)).reshape(len(a), -1) for a in tree]
        return jnp.stack([part.sum(axis=1) for part in parts]).sum(axis=0)

    got, wanted = jax.tree.leaves(outputs), jax.tree.leaves(dense)
    return squares([a - b for a, b in zip(got, wanted, strict=True)]), squares(wanted)


def _is_flax(model: Any) -> bool:
    """Whether a network is a Flax module; where Flax was never imported, none is."""
    linen = sys.modules.get("flax.linen")
    return linen is not None and isinstance(model, linen.Module)


def whole_frames(box: Box | None) -> None:
    """Refuses a box, for a task that looks at whole frames.

    Raises:
      ValueError: there is one.
    """
    if box is not None:
        raise ValueError(f"`box` (={box}) must be left out: this task looks at whole frames.")
