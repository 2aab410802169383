"""What a frame spent: functions of its masks and the table, whatever ran it.

Masks are `{name: (B, nh, nw)}` of `plan.fired`, or the state of `net.apply`, which holds them.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.macs.table import Row, Table
from skipconv_jax.ops.state import SkipState

Fired = Mapping[str, jax.Array] | Mapping[str, SkipState]


def fired(masks: Fired, name: str) -> jax.Array:
    """Mask `(B, nh, nw)` of a convolution.

    Args:
      masks: of `plan.fired`, or the state of `net.apply`.
      name: of the convolution.

    Raises:
      ValueError: it is not among them.
    """
    if name not in masks:
        raise ValueError(
            f"`masks` (layers {sorted(masks)}) must hold {name!r}; use the masks or the state of "
            "the network the table was made for."
        )
    found: Any = masks[name]
    mask: jax.Array = getattr(found, "fired", found)
    return mask


def firing(table: Table, masks: Fired) -> dict[str, jax.Array]:
    """Share of output positions each Skip-Convolution computed at the last frame.

    Args:
      table: of the network.
      masks: of the frame, or the state after it.

    Returns:
      `{name: (B,)}` in [0, 1], differentiable through straight-through masks.
    """
    return {row.name: _mean_fired(row, masks) for row in table.skipped()}


def _mean_fired(row: Row, masks: Fired) -> jax.Array:
    mask = fired(masks, row.name)
    if row.conv is None or row.gate is None:
        raise AssertionError(f"{row.name} is dense")
    grid = row.conv.grid(row.gate.block)
    if mask.shape[1:] != grid:
        raise ValueError(
            f"`masks` (layer {row.name!r}, a mask of {mask.shape[1:]} blocks) must have {grid}; "
            "use those of a frame of the size the table was made for."
        )
    # Ragged edge blocks hold fewer positions, so blocks are weighted by their size; divided last,
    # because whole numbers add up exactly: where everything fires the share is 1.
    sizes = jnp.asarray(row.conv.block_sizes(row.gate.block), mask.dtype)
    positions = (mask * sizes[None]).reshape(-1, row.calls * sizes.size)
    return positions.sum(axis=1) / (row.calls * sizes.sum())


def spent(table: Table, masks: Fired) -> dict[str, jax.Array]:
    """Multiply-accumulates of each Skip-Convolution at the last frame, `{name: (B,)}`."""
    shares = firing(table, masks)
    # As float: beyond 2^31 a Python integer would not fit the int32 it becomes.
    return {row.name: float(row.macs) * shares[row.name] for row in table.skipped()}


def spent_total(table: Table, masks: Fired) -> jax.Array:
    """Multiply-accumulates of the whole network at the last frame, `(B,)`.

    Convolutions that stayed dense count in full; the gates' own cost (`Table.gate_macs`) does not.
    """
    dense = sum(row.macs for row in table.rows if not row.skipped)
    total = jnp.asarray(float(dense), jnp.float32)
    for count in spent(table, masks).values():
        total = total + count.astype(jnp.float32)
    return jnp.broadcast_to(total, (table.streams,)) if total.ndim == 0 else total


def gate_loss(table: Table, masks: Fired) -> jax.Array:
    """Eq. 9 for one frame: sum_l m_l E[g_l] / sum_l m_l, a scalar in [0, 1].

    m_l are the layer's multiply-accumulates, E the mean over streams and output positions.
    Differentiable through straight-through masks; average it over the frames t >= 2 of a clip.

    Raises:
      ValueError: a network without Skip-Convolutions.
    """
    rows = table.skipped()
    if not rows:
        raise ValueError(
            "`table` must have at least one Skip-Convolution; the rules left all dense."
        )
    whole = math.fsum(row.macs for row in rows)
    shares = firing(table, masks)
    terms = [shares[row.name].mean() * (row.macs / whole) for row in rows]
    return jnp.stack(terms).sum()


def stage_firing(table: Table, masks: Fired) -> dict[str, jax.Array]:
    """Share of each stage's multiply-accumulates spent at the last frame, `{stage: (B,)}`."""
    counts = spent(table, masks)
    streams = next((count.shape[0] for count in counts.values()), table.streams)
    total: dict[str, jax.Array] = {}
    for row in table.rows:
        dense = jnp.full((streams,), float(row.macs), jnp.float32)
        count = counts[row.name].astype(jnp.float32) if row.skipped else dense
        total[row.stage] = total[row.stage] + count if row.stage in total else count
    return {stage: total[stage] / float(whole) for stage, whole in table.stages().items()}


def firing_map(table: Table, masks: Fired, size: tuple[int, int]) -> jax.Array:
    """Where the last frame was computed: `(B, h, w)` in [0, 1], layers weighted by their MACs.

    Every convolution's mask is stretched over the frame, block edges kept; those on no plain 2-D
    grid and those called several times per frame are left out.
    """
    rows = [row for row in table.skipped() if row.conv and row.conv.rank == 2 and row.calls == 1]
    if not rows:
        raise ValueError("`table` must have a 2-D Skip-Convolution; the rules left all dense.")
    # Layers that share a grid are added before they are stretched: few grids, many layers.
    grids: dict[tuple[tuple[int, ...], int], jax.Array] = {}
    whole = float(sum(row.macs for row in rows))
    for row in rows:
        block = row.gate.block if row.gate else 1
        key = (row.out_shape[:2], block)
        share = fired(masks, row.name).astype(jnp.float32) * (row.macs / whole)
        grids[key] = grids[key] + share if key in grids else share
    parts = [_stretch(mask, spatial, block, size) for (spatial, block), mask in grids.items()]
    return jnp.stack(parts).sum(axis=0)


def _stretch(
    mask: jax.Array, spatial: tuple[int, ...], block: int, size: tuple[int, int]
) -> jax.Array:
    """`(B, *grid)` over blocks of a map of `spatial` positions to `(B, *size)`, nearest."""
    for axis, (positions, n) in enumerate(zip(spatial, size, strict=True), start=1):
        at = ((np.arange(n) + 0.5) * positions / n).astype(np.int32) // block
        mask = jnp.take(mask, at, axis=axis)
    return mask
