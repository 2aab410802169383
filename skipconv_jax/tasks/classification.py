"""Video classification: cross-entropy of every frame, consensus of the video, top-1."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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


class Top1:
    """Share of videos whose highest logit is the right one, and the same per class."""

    def __init__(self, classes: int) -> None:
        self.hits = np.zeros(classes, np.int64)
        self.counts = np.zeros(classes, np.int64)

    def update(self, logits: Any, label: Any, valid: Any = None) -> None:
        """Adds videos.

        Args:
          logits: `(B, classes)`; a row that holds NaN is a miss.
          label: `(B,)` integers.
          valid: `(B,)` bool, videos that count; all by default.
        """
        logits, label = np.asarray(logits), np.asarray(label)
        if logits.ndim != 2 or logits.shape[:1] != label.shape or logits.shape[1] != len(self.hits):
            raise ValueError(
                f"`logits` (shape {logits.shape}) and `label` (shape {label.shape}) must have "
                f"shapes (B, {len(self.hits)}) and (B,)."
            )
        counted = np.ones(label.shape, bool) if valid is None else np.asarray(valid, bool)
        right = (logits.argmax(axis=1) == label) & ~np.isnan(logits).any(axis=1)
        np.add.at(self.hits, label[counted], right[counted])
        np.add.at(self.counts, label[counted], 1)

    def result(self) -> dict[str, float]:
        """`top1` over videos and `mean_class` over the classes seen, in [0, 1]."""
        seen = self.counts > 0
        if not seen.any():
            return {"top1": float("nan"), "mean_class": float("nan")}
        share = self.hits[seen] / self.counts[seen]
        return {
            "top1": float(self.hits.sum() / self.counts.sum()),
            "mean_class": float(share.mean()),
        }
