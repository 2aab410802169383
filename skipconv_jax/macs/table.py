"""The table of a network's convolutions with their multiply-accumulates, skipped or dense."""

import dataclasses
import json
from collections.abc import Collection

from skipconv_jax.ops.gates import Gate
from skipconv_jax.ops.geometry import Conv
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

    def without(self, names: Collection[str]) -> "Table":
        """The table but for some convolutions, such as those whose results nobody uses."""
        return dataclasses.replace(
            self, rows=tuple(row for row in self.rows if row.name not in names)
        )

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
