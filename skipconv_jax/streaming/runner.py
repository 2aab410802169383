"""Streams of any length in constant memory: a compiled scan over few frames, state donated."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax import macs
from skipconv_jax.ops import SkipState
from skipconv_jax.plans.native import Constants, Plan, PlanState
from skipconv_jax.program.canonical import for_this_backend
from skipconv_jax.streaming.guards import Guard
from skipconv_jax.transform import NetParams, NetState, SkipNet


class Reading(NamedTuple):
    """What is read off after each frame; arrays lead with (T, B) when scanned.

    Attributes:
      outputs: what `read` made of the network's outputs.
      macs: `(B,)` multiply-accumulates spent, dense convolutions included, gates not.
      firing: `{stage: (B,)}` share of the stage's multiply-accumulates spent.
      places: `(B, h, w)` share of the network's work done at each place, or None.
      fresh: `(B,)` bool, where a reset policy took a reference frame; None without policies.
      figures: named `(B,)` of the reset policies, such as `drift/<layer>`.
    """

    outputs: Any
    macs: jax.Array
    firing: dict[str, jax.Array]
    places: jax.Array | None
    fresh: jax.Array | None = None
    figures: dict[str, jax.Array] | None = None


Streamer = Callable[[NetParams, Any, Any], tuple[Any, Reading]]


def make_streamer(
    net: SkipNet,
    table: macs.Table,
    read: Callable[[Any], Any],
    places: tuple[int, int] | None = None,
    guard: Guard | None = None,
) -> Streamer:
    """Jitted `(params, state, frames) -> (state, readings)` over the T frames of a piece of stream.

    Args:
      net: the skipped network.
      table: its table, for B streams.
      read: makes of the network's outputs what should leave the device (joints, not heatmaps).
      places: size of the map of where work was done, None for no map.
      guard: reset policies; the state is then the pair of the network's and `guard.init(frame)`.

    Returns:
      A function of params, state (donated) and frames, whose arrays are `(T, B, ...)`. Pieces
      follow each other as if they were one: split a stream anywhere. A new T compiles anew.
    """

    def frame_step(params: NetParams, carry: Any, x: Any) -> tuple[Any, Reading]:
        if guard is None:
            outputs, state = net.apply(params, carry, x)
            return state, _reading(table, read, places, outputs, state)
        outputs, state, memory, report = guard.apply(params, *carry, x)
        seen = _reading(table, read, places, outputs, state)
        return (state, memory), seen._replace(fresh=report.fresh, figures=report.figures)

    def run(params: NetParams, state: Any, frames: Any) -> tuple[Any, Reading]:
        return jax.lax.scan(lambda carry, x: frame_step(params, carry, x), state, frames)

    return jax.jit(for_this_backend(run), donate_argnums=1)


def make_plan_streamer(
    plan: Plan,
    table: macs.Table,
    read: Callable[[Any], Any],
    places: tuple[int, int] | None = None,
) -> Streamer:
    """`make_streamer` for a native plan: parameters are `plan.constants`, the state its own."""

    def frame_step(constants: Constants, state: PlanState, x: Any) -> tuple[PlanState, Reading]:
        outputs, state, masks = plan.apply(state, x, constants)
        none = jnp.zeros((0,))
        layers = {
            name: SkipState(reference=none, output=none, fresh=none, fired=fired)
            for name, fired in plan.fired(masks).items()
        }
        return state, _reading(table, read, places, outputs, layers)

    def run(constants: Constants, state: PlanState, frames: Any) -> tuple[PlanState, Reading]:
        return jax.lax.scan(lambda carry, x: frame_step(constants, carry, x), state, frames)

    return jax.jit(run, donate_argnums=1)


def _reading(
    table: macs.Table,
    read: Callable[[Any], Any],
    places: tuple[int, int] | None,
    outputs: Any,
    state: NetState,
) -> Reading:
    firing = stage_firing(table, state)
    where = None if places is None else firing_map(table, state, places)
    return Reading(read(outputs), macs.spent_total(table, state), firing, where)


def stage_firing(table: macs.Table, state: dict[str, SkipState]) -> dict[str, jax.Array]:
    """Share of each stage's multiply-accumulates spent at the last frame, `{stage: (B,)}`."""
    spent = macs.spent(table, state)
    total: dict[str, jax.Array] = {}
    for row in table.rows:
        dense = jnp.full((table.streams,), float(row.macs), jnp.float32)
        count = spent[row.name].astype(jnp.float32) if row.skipped else dense
        total[row.stage] = total[row.stage] + count if row.stage in total else count
    return {stage: total[stage] / float(whole) for stage, whole in table.stages().items()}


def firing_map(table: macs.Table, state: dict[str, SkipState], size: tuple[int, int]) -> jax.Array:
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
        share = state[row.name].fired.astype(jnp.float32) * (row.macs / whole)
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
