"""Writes programs for the native engine, one call per operation of the network."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skipconv_jax.native import chains, packing, schema
from skipconv_jax.native.layout import OpRecord, Ref, TensorSpec, lay_out
from skipconv_jax.native.packing import round_up
from skipconv_jax.native.program import MaskSlot, Program
from skipconv_jax.native.specs import Activation, ConvSpec

MAX_TAPS = 16  # of one axis of a resampling (csrc/kernels/pixels.h)
Act = Activation | str


class ProgramBuilder:
    """Records operations, then lays out state and weights.

    Every method takes and returns `Ref`s; `finish()` gives the `Program`.
    """

    def __init__(self, *, winograd: bool = True) -> None:
        self._winograd = winograd
        self._tensors: list[TensorSpec] = []
        self._ops: list[OpRecord] = []
        self._weights = _Pile(16)
        self._gates = _Pile(1)
        self._table: list[int] = []
        self._masks: dict[str, MaskSlot] = {}
        self._mask_size = 0
        self._inputs: list[tuple[int, int, int]] = []
        self._outputs: list[tuple[int, ...]] = []

    # -- recording ---------------------------------------------------------------------------------
    def _tensor(self, h: int, w: int, c: int, *, raw: bool = False) -> Ref:
        cs = c if raw else round_up(c, 16)
        self._tensors.append(TensorSpec(h, w, c, cs, born=len(self._ops)))
        return Ref(len(self._tensors) - 1, h, w, c)

    def _record(
        self, kind: str, out: Ref, sources: Sequence[Ref], name: str = "", **fields: Any
    ) -> OpRecord:
        """An operation; `fields` are those of the schema, and `act` an activation."""
        if len(sources) > schema.MAX_SOURCES:
            raise ValueError(
                f"`sources` (={len(sources)} tensors) must be at most {schema.MAX_SOURCES}; "
                "chain operations."
            )
        # An output is no birth: its tensor was made before, and its scratch is taken from then on.
        if kind != "output":
            self._tensors[out.index].born = len(self._ops)
        ones = [1] * schema.MAX_SOURCES
        values: dict[str, Any] = dict.fromkeys(
            ("res", "w", "bias", "z", "ref", "acc", "sig", "lut", "tail", "next", "head"), -1
        )
        values |= {"out": out.index, "nsrc": len(sources), "fh": ones, "fw": ones}
        values |= {"kind": schema.value("OpKind", kind), "src": [s.index for s in sources]}
        values |= self._act(Activation.of(fields.pop("act", "none"))) | fields
        self._ops.append(OpRecord(kind, values, [s.index for s in sources], out.index, name))
        return self._ops[-1]

    def _act(self, act: Activation) -> dict[str, Any]:
        fields: dict[str, Any] = {"act": schema.value("Act", act.fn)}
        fields |= dict(zip(("a0", "a1"), act.params, strict=False))
        if act.slope:
            slope = np.asarray(act.slope, np.float32)
            fields["slope"] = self._weights.add(
                packing.pad_channels(slope, round_up(slope.size, 16))
            )
        return fields

    def _use(self, ref: Ref, *, delta: bool = False, cur: bool = False) -> None:
        t = self._tensors[ref.index]
        t.dies = max(t.dies, len(self._ops))
        t.needs_delta |= delta
        t.needs_cur |= cur

    def _pixels(
        self, kind: str, sources: Sequence[Ref], shape: tuple[int, int, int], **fields: Any
    ) -> Ref:
        """An operation whose positions are made of a few positions of its sources."""
        for s in sources:
            if self._tensors[s.index].cs % 16:
                raise ValueError(
                    f"`sources` ({s}, a `raw` input) must be padded tensors: convolutions alone "
                    "read raw ones; drop `raw`."
                )
            self._use(s, cur=True)
        out = self._tensor(*shape)
        self._tensors[out.index].needs_cur = True
        self._record(kind, out, sources, **fields)
        return out

    def input(
        self, h: int, w: int, c: int, *, raw: bool = False, channels_first: bool = False
    ) -> Ref:
        """A frame `(B, h, w, c)`, float32, given as `(B, c, h, w)` if `channels_first`.

        `raw` keeps c channels unpadded: for direct convolutions that read it as their input only.
        """
        out = self._tensor(h, w, c, raw=raw)
        self._tensors[out.index].needs_cur = True
        self._inputs.append((h, w, c))
        self._record("input", out, [], io=len(self._inputs) - 1, mode=int(channels_first))
        return out

    # -- convolutions ------------------------------------------------------------------------------
    def conv(
        self, x: Ref, spec: ConvSpec, *, residual: Ref | None = None, scale: Ref | None = None
    ) -> Ref:
        """`spec` of x.

        Args:
          x: input.
          spec: what is computed.
          residual: added before the activation, of the output's shape.
          scale: `(B, 1, 1, Ci)`, times x; with a plain 1x1 convolution only.
        """
        h, w = spec.out_size(x.h, x.w)
        out = self._tensor(h, w, spec.kernel.shape[3])
        self._check_inputs(x, spec, out, residual, scale)
        source, target = self._tensors[x.index], self._tensors[out.index]
        algorithm = spec.algorithm(source.cs, target.cs, self._winograd)
        source.widen(spec, (h, w), 1 if algorithm == "winograd" else 0)
        self._use_inputs(x, spec, residual, scale)
        target.needs_cur |= spec.policy != "previous"
        target.aligned = spec.gate.block % schema.CELL == 0
        fields = self._geometry(spec) | self._kernel(spec, algorithm, target.cs)
        fields |= self._gate(spec, source, (h, w))
        if spec.bias is not None:
            bias = packing.pad_channels(np.asarray(spec.bias), target.cs)
            fields["bias"] = self._weights.add(bias)
        fields["res"] = -1 if residual is None else residual.index
        sources = [x] if scale is None else [x, scale]
        self._record("conv", out, sources, spec.name, act=spec.act, **fields).spec = spec
        return out

    def _check_inputs(
        self, x: Ref, spec: ConvSpec, out: Ref, residual: Ref | None, scale: Ref | None
    ) -> None:
        if scale is not None and not spec.pointwise:
            raise ValueError(
                f"`scale` (={scale}) must go with a 1x1 convolution of stride 1 without padding or "
                "groups; use `binary` for the others."
            )
        if scale is not None and (scale.h, scale.w, scale.c) != (1, 1, x.c):
            raise ValueError(f"`scale` (={scale}) must hold one value per channel of `x` (={x}).")
        if residual is None:
            return
        if (residual.h, residual.w, residual.c) != (out.h, out.w, out.c):
            raise ValueError(f"`residual` (={residual}) must have the output's shape (={out}).")
        if self._tensors[residual.index].cs % 16:
            raise ValueError(
                f"`residual` ({residual}, a `raw` input) must be a padded tensor; drop `raw`."
            )

    def _use_inputs(self, x: Ref, spec: ConvSpec, residual: Ref | None, scale: Ref | None) -> None:
        previous, closed = spec.policy == "previous", spec.policy == "closed_loop"
        self._use(x, delta=not closed, cur=not previous or scale is not None)
        if closed and scale is None:
            self._tensors[x.index].needs_old = True
            self._tensors[x.index].old_dies = len(self._ops)
        if scale is not None:
            self._use(scale, delta=not closed, cur=True)
        if residual is not None:
            # Under Eq. 3 the state holds the sum, and the residual enters by its change: less
            # memory to move than keeping z and the activation apart.
            self._use(residual, delta=previous, cur=not previous)

    @staticmethod
    def _geometry(spec: ConvSpec) -> dict[str, int]:
        (kh, kw), (sh, sw), (dh, dw) = spec.window, spec.strides, spec.dilation
        low = {"pt": spec.padding[0][0], "pl": spec.padding[1][0], "groups": spec.groups}
        return {"kh": kh, "kw": kw, "sh": sh, "sw": sw, "dh": dh, "dw": dw, **low}

    def _kernel(self, spec: ConvSpec, algorithm: str, cs_out: int) -> dict[str, int]:
        packed = spec.packed(algorithm, cs_out)
        wide = algorithm == "winograd" and packed.nbytes > 400_000
        return {
            "algo": schema.value("Algo", algorithm),
            "w": self._weights.add(packed),
            "count": packed.nbytes,
            "mode": (16 if wide else 8) if algorithm == "winograd" else 64,
        }

    def _gate(self, spec: ConvSpec, source: TensorSpec, size: tuple[int, int]) -> dict[str, int]:
        gate = spec.gate
        nbh, nbw = -(-size[0] // gate.block), -(-size[1] // gate.block)
        at = self._gates.add(gate.words(source.c, source.cs))
        slot = MaskSlot(self._mask_size, (nbh, nbw), gate, at, source.c, source.cs)
        self._masks[spec.name] = slot
        self._mask_size += nbh * nbw
        fields = {"gp": at, "mask": slot.offset, "b": gate.block, "nbh": nbh, "nbw": nbw}
        return fields | {
            "policy": schema.value("Policy", spec.policy),
            "gate": schema.value("Gate", gate.kind),
        }

    # -- everything else ---------------------------------------------------------------------------
    def add(
        self,
        sources: Sequence[Ref],
        *,
        factors: Sequence[int] | None = None,
        coefficients: Sequence[float] | None = None,
        act: Act = "none",
    ) -> Ref:
        """act(sum of coefficient * nearest-upsampled source); one whole factor per source."""
        factors = factors or [1] * len(sources)
        shape = {(s.h * f, s.w * f, s.c) for s, f in zip(sources, factors, strict=True)}
        if len(shape) != 1:
            raise ValueError(f"`sources` (upsampled: {sorted(shape)}) must have one shape.")
        fields: dict[str, Any] = {"fh": list(factors), "fw": list(factors), "act": act}
        if coefficients:
            fields["w"] = self._weights.add(np.asarray(coefficients, np.float32))
        return self._pixels("add", sources, shape.pop(), **fields)

    def pool(
        self,
        x: Ref,
        kind: str,
        window: tuple[int, int],
        strides: tuple[int, int],
        padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    ) -> Ref:
        """Of the schema's `PoolKind`: max, mean (padding counted), mean over valid ones, or sum."""
        h, w = (
            (n + sum(p) - k) // s + 1
            for n, p, k, s in zip((x.h, x.w), padding, window, strides, strict=True)
        )
        fields = {"kh": window[0], "kw": window[1], "sh": strides[0], "sw": strides[1]}
        fields |= {"pt": padding[0][0], "pl": padding[1][0]}
        mode = schema.value("PoolKind", kind)
        return self._pixels("pool", [x], (h, w, x.c), mode=mode, **fields)

    def affine(
        self,
        x: Ref,
        scale: np.ndarray | float | None = None,
        shift: np.ndarray | float | None = None,
        *,
        act: Act = "none",
    ) -> Ref:
        """act(x * scale + shift); scale and shift scalar or per channel."""
        fields: dict[str, Any] = {"act": act}
        for key, value in (("w", scale), ("bias", shift)):
            if value is not None:
                full = np.broadcast_to(np.asarray(value, np.float32), (x.c,))
                fields[key] = self._weights.add(packing.pad_channels(full, round_up(x.c, 16)))
        return self._pixels("affine", [x], (x.h, x.w, x.c), **fields)

    def channels(
        self, sources: Sequence[Ref], index: Sequence[int], *, factors: Sequence[int] | None = None
    ) -> Ref:
        """Output channel c is channel `index[c]` of the sources' channels one behind the other.

        -1 is a channel of zeros. Sources are nearest-upsampled by whole `factors` first.
        """
        factors = factors or [1] * len(sources)
        total = sum(s.c for s in sources)
        if not all(-1 <= i < total for i in index):
            raise ValueError(f"`index` (={list(index)}) must be from -1 to {total - 1}.")
        sizes = {(s.h * f, s.w * f) for s, f in zip(sources, factors, strict=True)}
        if len(sizes) != 1:
            raise ValueError(f"`sources` (upsampled: {sorted(sizes)}) must have one size.")
        runs = _runs([s.c for s in sources], index)
        table = self._integers([n for run in runs for n in run])
        fields = {"fh": list(factors), "fw": list(factors), "table": table, "count": len(runs)}
        return self._pixels("channels", sources, (*sizes.pop(), len(index)), **fields)

    def concat(self, sources: Sequence[Ref], factors: Sequence[int] | None = None) -> Ref:
        """Channels of all sources, nearest-upsampled, one behind the other."""
        return self.channels(sources, range(sum(s.c for s in sources)), factors=factors)

    def spatial(self, x: Ref, kind: str = "mean") -> Ref:
        """Mean, sum or max over all positions, `(B, 1, 1, c)`."""
        return self._pixels("spatial", [x], (1, 1, x.c), mode=schema.value("SpatialKind", kind))

    def binary(self, kind: str, x: Ref, y: Ref, *, act: Act = "none") -> Ref:
        """The schema's `BinaryKind` of x and y, where y has the shape of x or is `(B, 1, 1, c)`."""
        if y.c != x.c or (y.h, y.w) not in ((x.h, x.w), (1, 1)):
            raise ValueError(f"`y` (={y}) must have the shape of `x` (={x}) or one position.")
        mode = schema.value("BinaryKind", kind)
        return self._pixels("binary", [x, y], (x.h, x.w, x.c), mode=mode, act=act)

    def window(
        self,
        x: Ref,
        starts: tuple[int, int],
        size: tuple[int, int],
        *,
        strides: tuple[int, int] = (1, 1),
        value: float = 0.0,
    ) -> Ref:
        """Position (i, k) is x at starts + (i, k) * strides, or `value` beyond the edge."""
        fields = {"pt": -starts[0], "pl": -starts[1], "sh": strides[0], "sw": strides[1]}
        # `act` clears a0 and a1, so they come after it.
        return self._pixels("window", [x], (*size, x.c), a0=float(value), **fields)

    def resize(
        self,
        x: Ref,
        rows: tuple[np.ndarray, np.ndarray],
        cols: tuple[np.ndarray, np.ndarray],
        *,
        act: Act = "none",
    ) -> Ref:
        """Separable resampling: output row i is the sum over k of weight[i, k] * row index[i, k].

        Args:
          x: input.
          rows, cols: index and weight of every axis, each `(n, taps)`.
          act: activation after it.
        """
        for (index, weight), size in ((rows, x.h), (cols, x.w)):
            if index.shape != weight.shape or index.shape[1] > MAX_TAPS:
                raise ValueError(
                    f"`rows`, `cols` (={index.shape}, {weight.shape}) must be index and weight of "
                    f"one shape with at most {MAX_TAPS} taps."
                )
            if index.min() < 0 or index.max() >= size:
                raise ValueError(f"`rows`, `cols` must index from 0 to {size - 1}.")
        table = self._integers(np.concatenate([rows[0].ravel(), cols[0].ravel()]).tolist())
        weights = np.concatenate([rows[1].ravel(), cols[1].ravel()]).astype(np.float32)
        if rows[0].shape[1] == cols[0].shape[1] == 1 and not (weights == 1).all():
            # A single tap is copied as it is; weights other than 1 are two taps.
            pad = [(np.repeat(i, 2, 1), np.pad(w, ((0, 0), (0, 1)))) for i, w in (rows, cols)]
            return self.resize(x, pad[0], pad[1], act=act)
        fields = {"kh": rows[0].shape[1], "kw": cols[0].shape[1], "table": table}
        shape = (len(rows[0]), len(cols[0]), x.c)
        return self._pixels("resize", [x], shape, w=self._weights.add(weights), act=act, **fields)

    def depth_to_space(self, x: Ref, block: tuple[int, int], *, interleaved: bool = False) -> Ref:
        """`(h, w, bh bw c)` to `(h bh, w bw, c)`; the phases of a channel lie c apart.

        `interleaved`: next to each other, as ONNX's CRD and torch's PixelShuffle have them.
        """
        bh, bw = block
        if x.c % (bh * bw):
            raise ValueError(f"`x` (={x}) must have a multiple of {bh * bw} channels.")
        shape = (x.h * bh, x.w * bw, x.c // (bh * bw))
        return self._pixels("depth_to_space", [x], shape, kh=bh, kw=bw, mode=int(interleaved))

    def space_to_depth(self, x: Ref, block: tuple[int, int], *, interleaved: bool = False) -> Ref:
        """The inverse of `depth_to_space`."""
        bh, bw = block
        if x.h % bh or x.w % bw:
            raise ValueError(f"`x` (={x}) must have sides that `block` (={block}) divides.")
        shape = (x.h // bh, x.w // bw, x.c * bh * bw)
        return self._pixels("space_to_depth", [x], shape, kh=bh, kw=bw, mode=int(interleaved))

    def softmax(self, x: Ref) -> Ref:
        """Softmax over channels of every position."""
        return self._pixels("softmax", [x], (x.h, x.w, x.c))

    def reduce(self, x: Ref, kind: str) -> Ref:
        """Sum, mean, max or min over channels, `(B, h, w, 1)`."""
        mode = schema.value("ReduceKind", kind)
        return self._pixels("reduce", [x], (x.h, x.w, 1), mode=mode)

    def output(self, *maps: Ref, channels_first: bool = False) -> int:
        """Returns a map from the program, or the values of several one behind the other.

        A single one leaves as `(B, c, h, w)` if `channels_first`. Gives the position among the
        outputs.
        """
        sizes = [x.h * x.w * x.c for x in maps]
        alone = len(maps) == 1
        if channels_first and not alone:
            raise ValueError(f"`maps` (={len(maps)}) must be one map to leave channels first.")
        one = maps[0]
        shape = (one.c, one.h, one.w) if channels_first else (one.h, one.w, one.c)
        self._outputs.append(shape if alone else (sum(sizes),))
        for i, x in enumerate(maps):
            self._use(x, cur=True)
            count, at = sum(sizes), sum(sizes[:i])
            io, first = len(self._outputs) - 1, int(channels_first)
            self._record("output", x, [x], io=io, count=count, mode=at, first=first)
        return len(self._outputs) - 1

    def _integers(self, values: Sequence[int]) -> int:
        self._table += [int(v) for v in values]
        return len(self._table) - len(values)

    # -- layout ------------------------------------------------------------------------------------
    def finish(self) -> Program:
        """Lays out everything and gives the program."""
        chains.link(self._tensors, self._ops)
        arena = lay_out(self._tensors, self._ops)
        head: Mapping[str, int] = {
            "format": schema.digest(),
            "n_tensors": len(self._tensors),
            "n_ops": len(self._ops),
            "n_table": len(self._table),
            "state": arena.size,
            "masks": self._mask_size,
            "n_in": len(self._inputs),
            "n_out": len(self._outputs),
        }
        words = schema.pack(schema.HEADER, head)
        for t in self._tensors:
            words += schema.pack(schema.TENSOR, t.fields())
        for op in self._ops:
            words += schema.pack(schema.OP, op.fields)
        return Program(
            words=np.asarray(words + self._table, np.int32),
            weights=self._weights.array(),
            gates=self._gates.array(),
            state_size=arena.size,
            mask_size=self._mask_size,
            masks=dict(self._masks),
            inputs=tuple(self._inputs),
            outputs=tuple(self._outputs),
            names=tuple(op.name or op.kind for op in self._ops),
            kept=arena.kept,
        )


class _Pile:
    """Arrays one behind the other, each on a multiple of `align` floats."""

    def __init__(self, align: int) -> None:
        self._align = align
        self._parts: list[np.ndarray] = []
        self._size = 0

    def add(self, values: np.ndarray) -> int:
        """Offset of the values."""
        at = self._size
        flat = np.zeros(round_up(values.size, self._align), np.float32)
        flat[: values.size] = values.ravel()
        self._parts.append(flat)
        self._size += flat.size
        return at

    def array(self) -> np.ndarray:
        """All of them, with a line of zeros that vectors may reach into."""
        return np.concatenate([*self._parts, np.zeros(16, np.float32)])


def _runs(sizes: Sequence[int], index: Sequence[int]) -> list[tuple[int, int, int]]:
    """`index` as runs {source, first channel, length}; source -1 are zeros."""
    ends = np.cumsum(sizes)
    runs: list[tuple[int, int, int]] = []
    for i in index:
        source = int(np.searchsorted(ends, i, side="right")) if i >= 0 else -1
        channel = i - int(ends[source]) + sizes[source] if i >= 0 else 0
        if runs and runs[-1][0] == source and (i < 0 or sum(runs[-1][1:]) == channel):
            runs[-1] = (source, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((source, channel, 1))
    return runs
