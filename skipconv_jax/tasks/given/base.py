"""What all networks that a user brings share as experiments: streamed and compared, not trained."""

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from skipconv_jax import macs
from skipconv_jax.presets import Pixels, Preset
from skipconv_jax.tasks.base import Batch, Experiment
from skipconv_jax.tasks.given.network import Network
from skipconv_jax.transform import SkipNet


@dataclasses.dataclass(frozen=True)
class GivenExperiment(Experiment):
    """A `Network` with a preset; a subclass per task."""

    model: Network
    task: Preset | Pixels

    head: ClassVar = ()
    phases: ClassVar = ()
    asks: ClassVar[str] = ""
    """What of the dense network's answers the skipped one must repeat, in a table."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        return self.model.size

    def predict(self, variables: Any, frames: jax.Array) -> Any:
        """The network on RGB uint8 frames `(B, H, W, 3)`."""
        return self.model.fn(variables, self.task.prepare(frames))

    def variables(self, seed: int | None = None) -> dict[str, Any]:
        """The trained ones."""
        del seed
        variables: dict[str, Any] = self.model.variables
        return variables

    def table(self, net: SkipNet | None = None, streams: int = 1) -> macs.Table:
        """Multiply-accumulates of every convolution."""
        return (net or self.net()).table(self.model.variables, self.frame(streams))

    def fit(self, image: np.ndarray) -> np.ndarray:
        """A frame placed as the view says."""
        view = self.view(None, 0.0)
        return view.inputs([image], view.affine(image))[0]

    @abc.abstractmethod
    def asked(self, labels: Mapping[str, np.ndarray]) -> int:
        """How many of `asks` the labels hold that `answers` made."""

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


def maps(outputs: Any, name: str | None, meaning: str) -> jax.Array:
    """The output (B, N, h, w) that a task reads.

    Args:
      outputs: of the network: an array, or several by name.
      name: of the one that is meant; None where there is only one.
      meaning: of its second axis, for the message.

    Raises:
      ValueError: it is not there, or has another shape.
    """
    found = outputs if isinstance(outputs, dict) else {"output": outputs}
    shapes = {key: tuple(value.shape) for key, value in found.items()}
    wanted = next(iter(found)) if name is None and len(found) == 1 else name
    if wanted not in found or len(shapes[wanted]) != 4 or shapes[wanted][1] < 1:
        raise ValueError(
            f"`output` (={name!r}) must name an output of shape (B, {meaning}, h, w); the network "
            f"has {shapes}. Name one by --output, or wrap the network in a --fn of your own."
        )
    picked: jax.Array = found[wanted]
    return picked
