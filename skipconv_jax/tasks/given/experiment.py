"""A trained network that a user brings, as an experiment: streamed and compared, not trained."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from skipconv_jax import macs
from skipconv_jax.config import base, set_gate
from skipconv_jax.onnx import OnnxFunction, load
from skipconv_jax.onnx.reader import read
from skipconv_jax.presets import Preset, preset
from skipconv_jax.tasks.base import Batch, Box, Experiment, Scorer, View, whole_frames
from skipconv_jax.tasks.detection.anchors import non_maximum_suppression
from skipconv_jax.tasks.detection.experiment import DetectionScorer
from skipconv_jax.tasks.detection.metrics import AveragePrecision
from skipconv_jax.tasks.detection.predictions import Predictions
from skipconv_jax.tasks.given.view import PlacedBoxes, RawView
from skipconv_jax.transform import SAFE_GATE, SkipNet

TASKS = ("detection", "raw")
_CANDIDATES, _KEEP = 300, 100


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A function with its variables.

    Attributes:
      fn: `fn(variables, x)`, x as the preset prepares it.
      variables: trained.
      size: height and width of the frames it takes.
      name: of the file or function.
    """

    fn: Callable[..., Any]
    variables: Any
    size: tuple[int, int]
    name: str


def from_onnx(path: str, size: tuple[int, int] | None = None) -> Network:
    """The network of a file with one image input `(1, 3, H, W)`.

    Args:
      path: of the file.
      size: height and width, where the file leaves them free.

    Raises:
      ValueError: several inputs, or one that is no image.
    """
    shapes = None
    if size is not None:
        shapes = {tensor.name: (1, 3, *size) for tensor in read(path).inputs}
    variables, fn = load(path, shapes=shapes)
    return Network(fn, variables, _image_size(fn, path), path)


def _image_size(fn: OnnxFunction, path: str) -> tuple[int, int]:
    shapes = [tensor.shape or () for tensor in fn.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 3:
        raise ValueError(
            f"`onnx` (={path!r}) must have one input (1, 3, H, W) to stream frames; it has "
            f"{shapes}. Load it with `skipconv_jax.onnx.load` and feed it yourself."
        )
    _, _, height, width = (int(n) for n in shapes[0])  # type: ignore[arg-type]
    return height, width


@dataclasses.dataclass(frozen=True)
class GivenExperiment(Experiment):
    """A `Network` with a preset, or without one as the task `raw`."""

    model: Network
    task: Preset | None

    figures: ClassVar = (("ap50", "AP@.5 against dense"), ("ap", "AP@[.5:.95] against dense"))
    head: ClassVar = ()
    phases: ClassVar = ()
    answers_for_labels: ClassVar = True

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        return self.model.size

    def predict(self, variables: Any, frames: jax.Array) -> Any:
        """The network on RGB uint8 frames `(B, H, W, 3)`."""
        prepare = _zero_to_one if self.task is None else self.task.prepare
        return self.model.fn(variables, prepare(frames))

    def variables(self, seed: int | None = None) -> dict[str, Any]:
        """The trained ones."""
        del seed
        variables: dict[str, Any] = self.model.variables
        return variables

    def table(self, net: SkipNet | None = None, streams: int = 1) -> macs.Table:
        """Multiply-accumulates of every convolution."""
        return (net or self.net()).table(self.model.variables, self.frame(streams))

    def read(self, outputs: Any) -> Any:
        """Detections after suppression in input pixels; of the task `raw` the outputs."""
        return outputs if self.task is None else detections(self.task, outputs, self.size)

    def scorer(self) -> Scorer:
        """COCO AP."""
        return DetectionScorer(AveragePrecision(self._preset().classes, False, False))

    def _preset(self) -> Preset:
        if self.task is None:
            raise ValueError("`task` (='raw') has no boxes to score; name a --preset.")
        return self.task

    def view(self, box: Box | None, min_score: float) -> View:
        """Whole frames, placed as the preset says."""
        whole_frames(box)
        if self.task is None:
            return RawView(self.size)
        return PlacedBoxes(
            self.size, self.task.classes, min_score, self.task.stretch, self.task.pad
        )

    def answers(self, seen: Any) -> dict[str, np.ndarray]:
        """The detections that are sure enough, as boxes to be found."""
        boxes, scores, labels = map(np.asarray, seen)
        lead = scores.shape[:2]
        return {
            "boxes": boxes,
            "labels": np.where(scores > self._preset().sure, labels, -1),
            "ignored": np.zeros((*lead, 0, 4), np.float32),
            "annotated": np.ones(lead, bool),
            "scale": np.ones(lead, np.float32),
            "valid": np.ones(lead, bool),
        }

    def fit(self, image: np.ndarray) -> np.ndarray:
        """A frame placed as the preset says."""
        view = self.view(None, 0.0)
        return view.inputs([image], view.affine(image))[0]

    def clips(self, part: str) -> Any:
        """None of its own."""
        raise ValueError("`video` must be given: a network you bring comes with no data.")

    def first(self, clips: Any, count: int) -> Any:
        """The clips."""
        return clips

    def steps_per_epoch(self, clips: Any, recipe: ConfigDict) -> int:
        """Not trained."""
        raise ValueError("`onnx` and `fn` networks are not trained here.")

    def train_batches(self, clips: Any, recipe: ConfigDict, seed: int) -> Any:
        """Not trained."""
        raise ValueError("`onnx` and `fn` networks are not trained here.")

    def test_batches(self, clips: Any, length: int) -> Iterator[Batch]:
        """None of its own."""
        raise ValueError("`video` must be given: a network you bring comes with no data.")


def _zero_to_one(frames: jax.Array) -> jax.Array:
    """RGB in [0, 1], (B, 3, H, W)."""
    return frames.astype(jnp.float32).transpose(0, 3, 1, 2) * np.float32(1 / 255)


def detections(rule: Preset, outputs: Any, size: tuple[int, int]) -> Predictions:
    """Boxes by falling score without repeats, padded to a static number, (B, keep, ...)."""
    found = rule.decode(outputs, size)
    scores, at = jax.lax.top_k(found.scores, min(_CANDIDATES, found.scores.shape[1]))
    corners = jnp.take_along_axis(found.corners, at[..., None], 1)
    labels = jnp.take_along_axis(found.labels, at, 1)

    def one(corners: jax.Array, scores: jax.Array, labels: jax.Array) -> Predictions:
        keep = min(_KEEP, scores.shape[0])
        index, real = non_maximum_suppression(corners, scores, labels, rule.overlap, keep)
        return Predictions(
            jnp.where(real[:, None], corners[index], 0),
            jnp.where(real, scores[index], 0),
            jnp.where(real, labels[index], -1),
        )

    return jax.vmap(one)(corners, scores, labels)


def given(network: Network, task: str, name: str | None, config: ConfigDict) -> GivenExperiment:
    """The experiment of a network.

    Args:
      network: to run.
      task: one of `TASKS`.
      name: of a preset; None for the task `raw`.
      config: from `configuration`, with gate and policy as wanted.

    Raises:
      ValueError: an unknown task, or a preset where there must be none and the other way round.
    """
    if task not in TASKS:
        raise ValueError(f"`task` (={task!r}) must be one of {', '.join(TASKS)}.")
    if (name is None) != (task == "raw"):
        raise ValueError(f"`preset` (={name!r}) must be given for detection, and not for 'raw'.")
    return GivenExperiment(config, network, None if name is None else preset(name))


def configuration(
    network: Network,
    gate: tuple[str | None, float | None, int | None] = (None, None, None),
    policy: str = "",
) -> ConfigDict:
    """Settings of a network that is brought: a policy that does not drift, a small threshold.

    Args:
      network: to run.
      gate: name, threshold and block; None for the careful ones.
      policy: of all convolutions; `closed_loop`, which does not drift, by default.
    """
    config = base("given")
    with config.unlocked():
        config.input = ConfigDict({"height": network.size[0], "width": network.size[1]})
        safe = {"name": "input_norm", **dataclasses.asdict(SAFE_GATE)}
        config.skip.gate = ConfigDict(safe, type_safe=False)
        config.skip.policy = policy or "closed_loop"
    return set_gate(config, *gate)
