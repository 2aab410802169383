"""Counting multiply-accumulates: the network's, the ones spent, the gates', and the gate loss.

Unit: one multiply-accumulate of a convolution. Batch norm, bias, upsampling and fully connected
layers do not count, as in the paper. A clip's figure is the mean over all its frames, the dense
reference frame included.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from skipconv_jax import checks
from skipconv_jax.macs.spending import (
    Fired,
    fired,
    firing,
    firing_map,
    gate_loss,
    spent,
    spent_total,
    stage_firing,
)
from skipconv_jax.macs.table import GIGA, Row, Table

__all__ = [
    "GIGA",
    "Fired",
    "Row",
    "Table",
    "as_giga",
    "clip_mean",
    "fired",
    "firing",
    "firing_map",
    "gate_loss",
    "spent",
    "spent_total",
    "stage_firing",
]


def clip_mean(dense: float, per_frame: float, frames: int) -> float:
    """Mean cost of a frame in a clip: (D + (T - 1) c) / T, the reference frame included.

    Args:
      dense: D, cost of the reference frame.
      per_frame: c, mean cost of the others.
      frames: T.
    """
    checks.positive_integer("frames", frames, "the reference frame is the first.")
    return (dense + (frames - 1) * per_frame) / frames


def as_giga(counts: Mapping[str, Any]) -> dict[str, float]:
    """Counts in 1e9 multiply-accumulates, mean over streams."""
    return {name: float(jnp.mean(jnp.asarray(count))) / GIGA for name, count in counts.items()}
