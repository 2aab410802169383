"""Writes the operations on bytes of a quantised network into a program of the native engine.

Bytes are stored as q minus the least q of their dtype, so that all are 0 to 255: what is int8 in
the graph is so only here (`csrc/kernels/int8_api.h`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skipconv_jax.native import packing, schema
from skipconv_jax.native.builder import ProgramBuilder
from skipconv_jax.native.layout import Ref
from skipconv_jax.native.packing import round_up
from skipconv_jax.native.specs import ConvSpec
from skipconv_jax.ops.quantised import Finish, Grid

MAX_WIDTH = 4096  # positions of one row (csrc/ops/q_view.h)


def least(dtype: Any) -> int:
    """The least q of a dtype."""
    return int(np.iinfo(dtype).min)


@dataclasses.dataclass(frozen=True, eq=False)
class ByteConvSpec:
    """finish(float32(sum w (x - zero) + bias) multiplier), skipped by blocks.

    Attributes:
      spec: geometry, int8 kernel, gate, name; its policy is 'closed_loop'.
      zero: of the input.
      dtype: of the input.
      bias: int32 `(Co,)`.
      multiplier: float32 `(Co,)`.
      finish: how it is stored.
      dense: without a gate: what changed is computed.
    """

    spec: ConvSpec
    zero: int
    dtype: str
    bias: np.ndarray
    multiplier: np.ndarray
    finish: Finish
    dense: bool = False

    @property
    def algorithm(self) -> str:
        """Which kernel computes it."""
        ci, co = self.spec.kernel.shape[2:]
        if self.spec.groups == 1:
            return "direct"
        return "depthwise" if ci == 1 and co == self.spec.groups else "grouped"

    def packed(self) -> tuple[np.ndarray, int]:
        """The kernel as it is read, and groups of four channels (depthwise: rows) of it."""
        kernel = np.asarray(self.spec.kernel, np.int8)
        if self.algorithm == "depthwise":
            return packing.pack_bytes_depthwise(kernel), -(-kernel.shape[0] // 4)
        parts = np.split(kernel, self.spec.groups, axis=3)
        return np.stack([packing.pack_bytes(p) for p in parts]), -(-kernel.shape[2] // 4)

    def per_channel(self) -> tuple[np.ndarray, np.ndarray]:
        """Bias with the zero point inside, and multiplier; every group in whole panels."""
        sums = self.spec.kernel.astype(np.int64).sum(axis=(0, 1, 2))
        bias = self.bias.astype(np.int64) - (self.zero - least(self.dtype)) * sums
        if np.abs(bias).max(initial=0) >= 2**31:
            raise ValueError(f"`bias` of {self.spec.name!r} does not fit 32 bits.")
        groups = self.spec.groups if self.algorithm == "grouped" else 1
        return tuple(  # type: ignore[return-value]
            np.stack([_padded(part) for part in np.split(v, groups)])
            for v in (bias.astype(np.int32), np.asarray(self.multiplier, np.float32))
        )


def _padded(values: np.ndarray) -> np.ndarray:
    return np.pad(values, (0, round_up(values.size, 16) - values.size))


@dataclasses.dataclass(frozen=True)
class Moved:
    """One source of a `gather`: the row of each output row, the column of each column, or -1."""

    x: Ref
    rows: Sequence[int]
    columns: Sequence[int]


class ByteBuilder(ProgramBuilder):
    """`ProgramBuilder` with operations on bytes; `Ref`s of either kind are told apart by it."""

    def of_bytes(self, ref: Ref) -> bool:
        """Whether a tensor is one of bytes."""
        return self._tensors[ref.index].bytes

    # -- recording ---------------------------------------------------------------------------------
    def _bytes(self, h: int, w: int, c: int, *, raw: bool = False) -> Ref:
        if w > MAX_WIDTH:
            raise ValueError(f"`w` (={w}) of a map of bytes must be at most {MAX_WIDTH}.")
        out = self._tensor(h, w, c)
        t = self._tensors[out.index]
        t.bytes = t.needs_cur = True
        t.cs = 4 if raw else t.cs
        return out

    def _blob(self, values: np.ndarray) -> int:
        return self._weights.add(packing.as_floats(values))

    def _finish(self, finish: Finish) -> dict[str, Any]:
        """Fields of what is stored for a number."""
        if finish.dtype == "float32":
            return {"a0": finish.lo, "a1": finish.hi}
        low, high = finish.low - finish.zero, finish.high - finish.zero
        bounds = [float(np.float32(min(max(v, low), high))) for v in (finish.lo, finish.hi)]
        fields: dict[str, Any] = {"a0": bounds[0], "a1": bounds[1]}
        fields["shift"] = finish.zero - finish.low
        if finish.table is None:
            return fields
        return fields | self._lookup(finish.table)

    def _lookup(self, table: np.ndarray) -> dict[str, Any]:
        stored = (table.astype(np.int64) - least(table.dtype)).astype(np.uint8)
        entries = stored.size
        stored = np.pad(stored, (0, max(0, 256 - entries)))
        return {"lut": self._blob(stored), "entries": entries}

    def _made(
        self, kind: str, sources: Sequence[Ref], shape: tuple[int, int, int], dtype: str = "uint8",
        **fields: Any,
    ) -> Ref:  # fmt: skip
        """An operation whose output is bytes, or real where `dtype` is 'float32'."""
        for s in sources:
            if self._tensors[s.index].cs % 16 and kind != "q_gather":
                raise ValueError(
                    f"`sources` ({s}, a `raw` input) must be padded tensors; drop `raw`."
                )
            self._use(s, cur=True)
        if dtype == "float32":
            out = self._tensor(*shape)
            self._tensors[out.index].needs_cur = True
        else:
            out = self._bytes(*shape)
        self._record(kind, out, sources, **fields)
        return out

    # -- edges -------------------------------------------------------------------------------------
    def byte_input(
        self, h: int, w: int, c: int, grid: Grid, *, raw: bool = False, channels_first: bool = False
    ) -> Ref:
        """A frame `(B, h, w, c)`, float32, quantised as it enters; `raw` as in `input`."""
        out = self._bytes(h, w, c, raw=raw)
        self._inputs.append((h, w, c))
        fields = self._finish(Finish.on(grid)) | self._scale(grid.scale)
        self._record(
            "q_input", out, [], io=len(self._inputs) - 1, mode=int(channels_first), **fields
        )
        return out

    def _scale(self, scale: float) -> dict[str, int]:
        return {"mult": self._weights.add(np.asarray([scale], np.float32))}

    def mixed_output(self, *maps: tuple[Ref, Grid | None]) -> int:
        """`output` of maps of which those with a grid are bytes, and leave as real numbers."""
        sizes = [x.h * x.w * x.c for x, _ in maps]
        first = maps[0][0]
        alone = len(maps) == 1
        self._outputs.append((first.h, first.w, first.c) if alone else (sum(sizes),))
        for i, (x, grid) in enumerate(maps):
            self._use(x, cur=True)
            where: dict[str, Any] = {
                "io": len(self._outputs) - 1,
                "count": sum(sizes),
                "mode": sum(sizes[:i]),
            }
            if grid is None:
                self._record("output", x, [x], **where)
            else:
                self._record("q_output", x, [x], **where, **self._real(grid))
        return len(self._outputs) - 1

    def _real(self, grid: Grid) -> dict[str, Any]:
        return self._scale(grid.scale) | {"zeros": [grid.zero - grid.low]}

    def quantize(self, x: Ref, grid: Grid) -> Ref:
        """Real numbers of the program to a grid."""
        fields = self._finish(Finish.on(grid)) | self._scale(grid.scale)
        return self._made("quantize", [x], (x.h, x.w, x.c), **fields)

    def dequantize(self, x: Ref, grid: Grid) -> Ref:
        """Bytes to the real numbers they stand for."""
        return self._made("dequantize", [x], (x.h, x.w, x.c), "float32", **self._real(grid))

    # -- convolutions ------------------------------------------------------------------------------
    def byte_conv(self, x: Ref, conv: ByteConvSpec) -> Ref:
        """A convolution of bytes."""
        spec = conv.spec
        size = spec.out_size(x.h, x.w)
        x = self._bordered(x, conv)
        self._use(x, cur=True)
        source = self._tensors[x.index]
        source.widen(spec, size, 0)
        co = spec.kernel.shape[3]
        if conv.finish.dtype == "float32":
            out = self._tensor(*size, co)
            target = self._tensors[out.index]
            target.needs_cur, target.aligned = True, spec.gate.block % schema.CELL == 0
        else:
            out = self._bytes(*size, co)
        packed, quads = conv.packed()
        bias, multiplier = conv.per_channel()
        fields: dict[str, Any] = self._geometry(spec) | self._gate(spec, source, size)
        fields |= {"algo": schema.value("Algo", conv.algorithm), "count": quads}
        fields |= {
            "w": self._blob(packed),
            "bias": self._blob(bias),
            "mult": self._blob(multiplier),
        }
        op = self._record("q_conv", out, [x], spec.name, **fields, **self._finish(conv.finish))
        if not conv.dense and spec.gate.kind != "always":
            rows, cols = (
                (spec.gate.block - 1) * s + e
                for s, e in zip(spec.strides, spec.extent, strict=True)
            )
            blocks = fields["nbh"] * fields["nbw"]
            op.state = {"ref": -(-blocks * rows * cols * source.cs // 4), "sig": 1}
        return out

    def _bordered(self, x: Ref, conv: ByteConvSpec) -> Ref:
        """x, or a copy of it where another reader needs another border."""
        if not any(p for pair in conv.spec.padding for p in pair):
            return x
        source, zero = self._tensors[x.index], conv.zero - least(conv.dtype)
        if source.zero not in (-1, zero):
            x = self.gather([Moved(x, range(x.h), range(x.w))])
            source = self._tensors[x.index]
        source.zero = zero
        return x

    # -- everything else ---------------------------------------------------------------------------
    def byte_sum(self, sources: Sequence[Ref], tables: np.ndarray, finish: Finish) -> Ref:
        """finish(tables[0][q0] + tables[1][q1] + ...)."""
        x = sources[0]
        fields = self._finish(finish) | {"w": self._weights.add(np.asarray(tables, np.float32))}
        return self._made("q_sum", sources, (x.h, x.w, x.c), finish.dtype, **fields)

    def byte_mul(
        self, a: Ref, b: Ref, zeros: tuple[int, int], multiplier: float, finish: Finish
    ) -> Ref:
        """finish(float32((a - zero) (b - zero)) multiplier); b of a's shape or of one position.

        `zeros` are as they are stored: less the least q.
        """
        fields = self._finish(finish) | self._scale(multiplier) | {"zeros": list(zeros)}
        return self._made("q_mul", [a, b], (a.h, a.w, a.c), finish.dtype, **fields)

    def byte_mean(
        self,
        x: Ref,
        window: Mapping[str, int],
        size: tuple[int, int],
        zero: int,
        multiplier: np.ndarray,
        finish: Finish,
    ) -> Ref:
        """finish(float32(sum of (q - zero)) multiplier); `window` as the schema has it."""
        fields = self._finish(finish) | dict(window) | {"zeros": [zero]}
        fields["mult"] = self._weights.add(np.asarray(multiplier, np.float32))
        fields["mode"] = int(np.ndim(multiplier) > 0)
        return self._made("q_mean", [x], (*size, x.c), finish.dtype, **fields)

    def byte_max(self, x: Ref, window: Mapping[str, Any], size: tuple[int, int]) -> Ref:
        """Largest q of each window, of positions inside the map."""
        return self._made("q_max", [x], (*size, x.c), **window)

    def byte_table(self, x: Ref, table: np.ndarray) -> Ref:
        """table[q], element by element."""
        return self._made("q_table", [x], (x.h, x.w, x.c), **self._lookup(table))

    def gather(
        self,
        sources: Sequence[Moved],
        runs: Sequence[tuple[int, int, int]] | None = None,
        outside: int = 0,
    ) -> Ref:
        """Bytes that change places.

        Args:
          sources: with where each output position is read; -1 beyond the edge.
          runs: {source, first channel, length} of the output's channels; all, in order, if None.
          outside: what is read beyond the edge, as it is stored.
        """
        runs = runs or [(i, 0, s.x.c) for i, s in enumerate(sources)]
        places = [int(n) for s in sources for n in (*s.rows, *s.columns)]
        table = self._integers([n for run in runs for n in run] + places)
        shape = (len(sources[0].rows), len(sources[0].columns), sum(n for _, _, n in runs))
        fields: dict[str, Any] = {"table": table, "count": len(runs), "shift": outside}
        return self._made("q_gather", [s.x for s in sources], shape, **fields)
