"""What training asks of classification: the cross-entropy of every frame of a video."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ClassificationTask:
    """What training asks of a task.

    Every frame is asked for the label of its video. The cross-entropy of mean logits is at most the
    mean of the frames' cross-entropies (it is convex), so this bounds the loss of the consensus and
    needs no more than one frame at a time.

    Attributes:
      classes: number of labels.
    """

    classes: int

    def losses(self, outputs: jax.Array, targets: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """`{'cross_entropy': scalar}` from logits `(..., classes)` and `label` `(...)` int32.

        Raises:
          ValueError: logits of another number of classes.
        """
        if outputs.shape[-1] != self.classes:
            raise ValueError(
                f"`outputs` (shape {outputs.shape}) must end in {self.classes} classes; change the "
                "network's `classes`."
            )
        chances = jax.nn.log_softmax(outputs.astype(jnp.float32), axis=-1)
        label = targets["label"][..., None]
        return {"cross_entropy": -jnp.take_along_axis(chances, label, axis=-1).mean()}

    def predict(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Label `(...)` int32 and its probability `(...)`."""
        chances = jax.nn.softmax(outputs.astype(jnp.float32), axis=-1)
        return jnp.argmax(outputs, axis=-1).astype(jnp.int32), chances.max(axis=-1)
