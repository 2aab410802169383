"""Top-1 of videos, over all of them and as the mean over classes."""

from typing import Any

import numpy as np


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
