"""Counting multiply-accumulates: the network's, the ones spent, the gates', and the gate loss.

Unit: one multiply-accumulate of a convolution. Batch norm, bias, upsampling and fully connected
layers do not count, as in the paper. A clip's figure is the mean over all its frames, the dense
reference frame included.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from skipconv_jax import checks
from skipconv_jax.ops.gates import Gate
from skipconv_jax.ops.geometry import Conv
from skipconv_jax.ops.state import SkipState
from skipconv_jax.program.walk import Site

GIGA = 1e9


@dataclasses.dataclass(frozen=True)
class Row:
    """One convolution, per frame and stream.

    Attributes:
      name: of the convolution.
      in_shape: `(*spatial, Ci)`.
      out_shape: `(*spatial, Co)`.
      kernel_shape: `(*window, Ci / groups, Co)`.
      calls: times it runs per frame.
      macs: of the dense convolution.
      gate_macs: that its gate spends on every frame.
      gate: its gate; None where it stays dense.
      conv: geometry; None where it is no plain convolution.
      dense_because: why it stays dense; empty where it is skipped.
      note: anything else a user should know.
    """

    name: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    calls: int
    macs: int
    gate_macs: int
    gate: Gate | None
    conv: Conv | None
    dense_because: str = ""
    note: str = ""

    @classmethod
    def make(cls, site: Site, gate: Gate | None) -> "Row":
        """Row of a traced convolution under its gate."""
        skipped = gate is not None and site.conv is not None
        gate_macs = gate.macs(site.conv) * site.calls if gate and site.conv else 0
        return cls(
            site.name,
            site.in_shape,
            site.out_shape,
            site.kernel_shape,
            site.calls,
            site.macs,
            gate_macs,
            gate if skipped else None,
            site.conv,
            site.dense_because,
            site.note,
        )

    @property
    def stage(self) -> str:
        """First component of the name."""
        return self.name.split("/")[0].split("@")[0]

    @property
    def skipped(self) -> bool:
        """Whether it is a Skip-Convolution."""
        return self.gate is not None


@dataclasses.dataclass(frozen=True)
class Table:
    """Every convolution of a network, in the order of the trace.

    Attributes:
      rows: one per call of a convolution.
      streams: B, of the frame it was traced with.
    """

    rows: tuple[Row, ...]
    streams: int

    @property
    def macs(self) -> int:
        """Dense multiply-accumulates per frame and stream."""
        return sum(row.macs for row in self.rows)

    @property
    def gate_macs(self) -> int:
        """Multiply-accumulates of all gates per frame and stream."""
        return sum(row.gate_macs for row in self.rows)

    def skipped(self) -> tuple[Row, ...]:
        """The rows that are Skip-Convolutions."""
        return tuple(row for row in self.rows if row.skipped)

    def stages(self) -> dict[str, int]:
        """Dense multiply-accumulates per stage, the first component of a name."""
        totals: dict[str, int] = {}
        for row in self.rows:
            totals[row.stage] = totals.get(row.stage, 0) + row.macs
        return totals

    def to_json(self) -> str:
        """The table as JSON: totals, stages and rows."""
        rows = []
        for row in self.rows:
            fields = {
                f.name: getattr(row, f.name)
                for f in dataclasses.fields(row)
                if f.name not in ("gate", "conv")
            }
            if row.conv is not None:
                conv = row.conv
                fields |= {
                    "strides": conv.strides,
                    "dilation": conv.dilation,
                    "groups": conv.groups,
                }
            rows.append(fields | {"gate": None if row.gate is None else repr(row.gate)})
        total = {"macs": self.macs, "gate_macs": self.gate_macs, "stages": self.stages()}
        return json.dumps(total | {"rows": rows}, indent=1)

    def __str__(self) -> str:
        width = max([len(row.name) for row in self.rows] + [len("convolution")])
        lines = [
            f"{'convolution':{width}}  {'output':>16}  {'kernel':>16}  {'MMAC':>9}  {'gate':>7}"
            "  how"
        ]
        for row in self.rows:
            out, kernel = ("x".join(map(str, shape)) for shape in (row.out_shape, row.kernel_shape))
            how = f"dense: {row.dense_because}" if row.dense_because else repr(row.gate)
            how += f" ({row.note})" if row.note else ""
            lines.append(
                f"{row.name:{width}}  {out:>16}  {kernel:>16}  {row.macs / 1e6:9.3f}  "
                f"{row.gate_macs / 1e6:7.3f}  {how}"
            )
        lines += [
            f"{stage:{width}}  {count / GIGA:9.4f} GMAC" for stage, count in self.stages().items()
        ]
        dense = sum(1 for row in self.rows if not row.skipped)
        lines.append(
            f"{'total':{width}}  {self.macs / GIGA:9.4f} GMAC, gates "
            f"{self.gate_macs / GIGA:.4f} GMAC; {len(self.rows)} convolutions, {dense} dense"
        )
        return "\n".join(lines)


def firing(table: Table, state: Mapping[str, SkipState]) -> dict[str, jax.Array]:
    """Share of output positions each Skip-Convolution computed at the last frame.

    Args:
      table: of the network.
      state: after the frame.

    Returns:
      `{name: (B,)}` in [0, 1], differentiable through straight-through masks.
    """
    return {row.name: _mean_fired(row, state) for row in table.skipped()}


def _mean_fired(row: Row, state: Mapping[str, SkipState]) -> jax.Array:
    if row.name not in state:
        raise ValueError(
            f"`state` (layers {sorted(state)}) must hold {row.name!r}; use the state of the "
            "network the table was made for."
        )
    fired = state[row.name].fired
    if row.conv is None or row.gate is None:
        raise AssertionError(f"{row.name} is dense")
    grid = row.conv.grid(row.gate.block)
    if fired.shape[1:] != grid:
        raise ValueError(
            f"`state` (layer {row.name!r}, a mask of {fired.shape[1:]} blocks) must have {grid}; "
            "use the state of a frame of the size the table was made for."
        )
    # Ragged edge blocks hold fewer positions, so blocks are weighted by their size.
    sizes = jnp.asarray(row.conv.block_sizes(row.gate.block), fired.dtype)
    share = (fired * (sizes / sizes.sum())[None]).reshape(-1, row.calls * sizes.size)
    return share.sum(axis=1) / row.calls


def spent(table: Table, state: Mapping[str, SkipState]) -> dict[str, jax.Array]:
    """Multiply-accumulates of each Skip-Convolution at the last frame, `{name: (B,)}`."""
    shares = firing(table, state)
    # As float: beyond 2^31 a Python integer would not fit the int32 it becomes.
    return {row.name: float(row.macs) * shares[row.name] for row in table.skipped()}


def spent_total(table: Table, state: Mapping[str, SkipState]) -> jax.Array:
    """Multiply-accumulates of the whole network at the last frame, `(B,)`.

    Convolutions that stayed dense count in full; the gates' own cost (`Table.gate_macs`) does not.
    """
    dense = sum(row.macs for row in table.rows if not row.skipped)
    total = jnp.asarray(float(dense), jnp.float32)
    for count in spent(table, state).values():
        total = total + count.astype(jnp.float32)
    return jnp.broadcast_to(total, (table.streams,)) if total.ndim == 0 else total


def clip_mean(dense: float, per_frame: float, frames: int) -> float:
    """Mean cost of a frame in a clip: (D + (T - 1) c) / T, the reference frame included.

    Args:
      dense: D, cost of the reference frame.
      per_frame: c, mean cost of the others.
      frames: T.
    """
    checks.positive_integer("frames", frames, "the reference frame is the first.")
    return (dense + (frames - 1) * per_frame) / frames


def gate_loss(table: Table, state: Mapping[str, SkipState]) -> jax.Array:
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
    shares = firing(table, state)
    terms = [shares[row.name].mean() * (row.macs / whole) for row in rows]
    return jnp.stack(terms).sum()


def as_giga(counts: Mapping[str, Any]) -> dict[str, float]:
    """Counts in 1e9 multiply-accumulates, mean over streams."""
    return {name: float(jnp.mean(jnp.asarray(count))) / GIGA for name, count in counts.items()}
