"""Writes programs for the native engine, one call per operation of the network."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.native import library, packing
from skipconv_jax.native.layout import Arena, TensorSpec, place
from skipconv_jax.native.packing import DEPTHWISE, DIRECT, GROUPED, WINOGRAD, round_up

_MAGIC = 0x534B4332
_MAX_SOURCES = 8
INPUT, CONV, ADD, POOL, AFFINE, CONCAT, MEAN, BINARY, OUTPUT = range(9)
_KINDS = ("input", "conv", "add", "pool", "affine", "concat", "mean", "binary", "output")
ACTIVATIONS = (
    "none", "relu", "relu6", "swish", "sigmoid", "tanh", "hard_swish", "elu", "gelu", "exp", "abs",
    "sqrt", "rsqrt", "square",
)  # fmt: skip
POLICIES = ("previous", "closed_loop", "accumulate")
GATES = ("norm", "always", "linear", "magnitude")
LINEAR = ("linear", "magnitude")
POOLS = ("max", "mean", "mean_valid", "sum")
BINARIES = ("mul", "add", "sub", "div", "max", "min", "rsub", "rdiv")
_FIELDS = (
    ["kind", "out", "res", "act", "nsrc"]
    + [f"{name}{i}" for name in ("src", "fh", "fw") for i in range(_MAX_SOURCES)]
    + ["algo", "kh", "kw", "sh", "sw", "dh", "dw", "pt", "pl", "groups"]
    + ["policy", "gate", "b", "nbh", "nbw", "z", "zpitch", "w", "bias", "gp", "mask", "ref", "acc"]
    + ["sig", "io", "mode", "count", "top"]
)
_WORDS = 64


@dataclasses.dataclass(frozen=True)
class Ref:
    """A tensor of a program under construction, `(B, h, w, c)`."""

    index: int
    h: int
    w: int
    c: int


@dataclasses.dataclass
class _OpSpec:
    fields: dict[str, int]
    sources: list[int]
    out: int
    name: str = ""


@dataclasses.dataclass(frozen=True)
class MaskSlot:
    """Where one convolution's mask lies in the masks of a stream, and its gate's parameters."""

    offset: int
    grid: tuple[int, int]
    gate: str
    gate_offset: int
    factor: float
    count: float
    channels: int


class ProgramBuilder:
    """Records operations, then lays out state and weights.

    Every method takes and returns `Ref`s; `finish()` gives the `Program`.
    """

    def __init__(self, *, winograd: bool = True) -> None:
        self._winograd = winograd
        self._tensors: list[TensorSpec] = []
        self._ops: list[_OpSpec] = []
        self._weights: list[np.ndarray] = []
        self._weight_size = 0
        self._gates: list[np.ndarray] = []
        self._gate_size = 0
        self._masks: dict[str, MaskSlot] = {}
        self._mask_size = 0
        self._inputs: list[tuple[int, int, int]] = []
        self._outputs: list[tuple[int, ...]] = []

    # -- recording ---------------------------------------------------------------------------------
    def _tensor(self, h: int, w: int, c: int, *, raw: bool = False) -> Ref:
        self._tensors.append(
            TensorSpec(h, w, c, c if raw else round_up(c, 16), born=len(self._ops))
        )
        return Ref(len(self._tensors) - 1, h, w, c)

    def _weight(self, values: np.ndarray) -> int:
        at = self._weight_size
        flat = np.zeros(round_up(values.size, 16), np.float32)
        flat[: values.size] = values.ravel()
        self._weights.append(flat)
        self._weight_size += flat.size
        return at

    def _record(
        self, kind: int, out: Ref, sources: Sequence[Ref], name: str = "", **fields: int
    ) -> Ref:
        if len(sources) > _MAX_SOURCES:
            raise ValueError(
                f"`sources` (={len(sources)} tensors) must be at most {_MAX_SOURCES}; "
                "chain operations."
            )
        # An output is no birth: its tensor was made before, and its scratch is taken from then on.
        if kind != OUTPUT:
            self._tensors[out.index].born = len(self._ops)
        base = {"kind": kind, "out": out.index, "res": -1, "w": -1, "bias": -1, "z": -1, "ref": -1}
        base.update({"acc": -1, "sig": -1, "nsrc": len(sources)})
        for i, s in enumerate(sources):
            base[f"src{i}"] = s.index
        for i in range(_MAX_SOURCES):
            base.setdefault(f"fh{i}", 1)
            base.setdefault(f"fw{i}", 1)
        self._ops.append(_OpSpec({**base, **fields}, [s.index for s in sources], out.index, name))
        return out

    def _use(self, ref: Ref, *, delta: bool = False, cur: bool = False) -> None:
        t = self._tensors[ref.index]
        t.dies = max(t.dies, len(self._ops))
        t.needs_delta |= delta
        t.needs_cur |= cur

    def input(self, h: int, w: int, c: int, *, raw: bool = False) -> Ref:
        """A frame `(B, h, w, c)`, float32. `raw` keeps c channels unpadded (direct convs)."""
        out = self._tensor(h, w, c, raw=raw)
        self._tensors[out.index].needs_cur = True
        self._inputs.append((h, w, c))
        return self._record(INPUT, out, [], io=len(self._inputs) - 1)

    def conv(
        self,
        x: Ref,
        kernel: np.ndarray,
        bias: np.ndarray | None = None,
        *,
        name: str,
        strides: tuple[int, int] = (1, 1),
        padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        residual: Ref | None = None,
        scale: Ref | None = None,
        act: str = "none",
        policy: str = "previous",
        gate: str = "norm",
        block: int = 8,
        gate_params: Sequence[float] | np.ndarray = (0.0,),
        factor: float = 1.0,
        count: float = 1.0,
        winograd: bool | None = None,
    ) -> Ref:
        """act(conv(x * scale) + bias + residual), skipped by blocks; kernel `(kh, kw, Ci / g, Co)`.

        `scale` `(B, 1, 1, Ci)` goes with a plain 1x1 convolution only.

        A norm gate fires where factor * sum|r| / count > gate_params[0]; a linear gate has
        `gate_params` = bias, then its kernel `(kh, kw, Ci)`, and fires where its logit is >= 0; a
        magnitude gate is one of |r|.
        """
        kh, kw, _, co = kernel.shape
        (pt, pb), (pl, pr) = padding
        if min(pt, pl) < 0:
            raise ValueError(
                f"`padding` (={padding}) must not be negative; slice the input instead."
            )
        if scale is not None:
            self._check_scale(scale, x, kernel, strides, padding, groups)
        extent = [(k - 1) * d + 1 for k, d in zip((kh, kw), dilation, strict=True)]
        oh = (x.h + pt + pb - extent[0]) // strides[0] + 1
        ow = (x.w + pl + pr - extent[1]) // strides[1] + 1
        out = self._tensor(oh, ow, co)
        source, target = self._tensors[x.index], self._tensors[out.index]
        allowed = self._winograd if winograd is None else winograd
        fits = (kh, kw) == (3, 3) and strides == (1, 1) and dilation == (1, 1) and groups == 1
        algo = self._algorithm(kernel, source.cs, target.cs, groups, fits and allowed)
        fields = self._pack(kernel, algo, groups, target.cs)
        self._border(source, x, padding, strides, extent, (oh, ow), 1 if algo == WINOGRAD else 0)
        nbh, nbw = -(-oh // block), -(-ow // block)
        if policy not in POLICIES or gate not in GATES:
            raise ValueError(
                f"`policy` (={policy!r}), `gate` (={gate!r}) must be of {POLICIES}, {GATES}."
            )
        if policy == "accumulate" and gate in LINEAR:
            raise ValueError(
                f"`gate` (={gate!r}) must be a norm to accumulate; use policy 'closed_loop'."
            )
        made = scale is not None
        self._use(x, delta=policy != "closed_loop", cur=policy != "previous" or made)
        if scale is not None:
            self._use(scale, delta=policy != "closed_loop", cur=True)
        if residual is not None:
            # Under Eq. 3 the state holds the sum, and the residual enters by its change: less
            # memory to move than keeping z and the activation apart.
            self._use(residual, delta=policy == "previous", cur=policy != "previous")
        target.needs_cur |= policy != "previous"
        self._masks[name] = MaskSlot(
            self._mask_size, (nbh, nbw), gate, self._gate_size, factor, count, source.cs
        )
        fields.update(gp=self._gate(gate, gate_params, factor, count, source), mask=self._mask_size)
        self._mask_size += nbh * nbw
        if bias is not None:
            fields["bias"] = self._weight(packing.pad_channels(np.asarray(bias), target.cs))
        fields.update(act=ACTIVATIONS.index(act), res=-1 if residual is None else residual.index)
        fields.update(kh=kh, kw=kw, sh=strides[0], sw=strides[1], dh=dilation[0], dw=dilation[1])
        fields.update(pt=pt, pl=pl, groups=groups, b=block, nbh=nbh, nbw=nbw)
        fields.update(policy=POLICIES.index(policy), gate=GATES.index(gate))
        return self._record(CONV, out, [x] if scale is None else [x, scale], name, **fields)

    @staticmethod
    def _check_scale(
        scale: Ref,
        x: Ref,
        kernel: np.ndarray,
        strides: tuple[int, int],
        padding: Sequence[tuple[int, int]],
        groups: int,
    ) -> None:
        plain = kernel.shape[:2] == strides == (1, 1) and groups == 1
        if not plain or any(p for pair in padding for p in pair):
            raise ValueError(
                f"`scale` (={scale}) must go with a 1x1 convolution of stride 1 without padding or "
                "groups; use `binary` for the others."
            )
        if (scale.h, scale.w, scale.c) != (1, 1, x.c):
            raise ValueError(f"`scale` (={scale}) must hold one value per channel of `x` (={x}).")

    @staticmethod
    def _algorithm(kernel: np.ndarray, cs: int, cs_out: int, groups: int, winograd: bool) -> int:
        ci, co = kernel.shape[2], kernel.shape[3]
        if groups > 1:
            return DEPTHWISE if ci == 1 and co == groups and cs == cs_out else GROUPED
        # Winograd's weights are 16/9 as many: with many channels, memory would set the pace.
        return (
            WINOGRAD if winograd and cs % 16 == 0 and ci * co <= 128 * 128 and ci >= 16 else DIRECT
        )

    def _pack(self, kernel: np.ndarray, algo: int, groups: int, cs_out: int) -> dict[str, int]:
        kernel = np.asarray(kernel, np.float32)
        packed = {
            DIRECT: lambda: packing.pack_direct(kernel),
            WINOGRAD: lambda: packing.pack_winograd(kernel),
            DEPTHWISE: lambda: packing.pack_depthwise(kernel, cs_out),
            GROUPED: lambda: packing.pack_grouped(kernel, groups),
        }[algo]()
        wide = algo == WINOGRAD and packed.size * 4 > 400_000
        return {
            "algo": algo,
            "w": self._weight(packed),
            "count": packed.size * 4,
            "mode": 16 if wide else 8,
        }

    @staticmethod
    def _border(
        t: TensorSpec,
        x: Ref,
        padding: Sequence[tuple[int, int]],
        strides: tuple[int, int],
        extent: list[int],
        out: tuple[int, int],
        extra: int,
    ) -> None:
        low, high = list(t.low), list(t.high)
        for i, size in enumerate((x.h, x.w)):
            last = (out[i] - 1) * strides[i] + extent[i] - padding[i][0] + extra
            low[i] = max(low[i], padding[i][0])
            high[i] = max(high[i], last - size)
        t.low, t.high = (low[0], low[1]), (high[0], high[1])

    def _gate(
        self,
        gate: str,
        params: Sequence[float] | np.ndarray,
        factor: float,
        count: float,
        source: TensorSpec,
    ) -> int:
        at = self._gate_size
        values = gate_words(
            gate, np.asarray(params, np.float32), factor, count, source.c, source.cs
        )
        self._gates.append(values)
        self._gate_size += values.size
        return at

    def add(
        self,
        sources: Sequence[Ref],
        *,
        factors: Sequence[int] | None = None,
        coefficients: Sequence[float] | None = None,
        act: str = "none",
    ) -> Ref:
        """act(sum of coefficient * nearest-upsampled source); one whole factor per source."""
        factors = factors or [1] * len(sources)
        shape = {(s.h * f, s.w * f, s.c) for s, f in zip(sources, factors, strict=True)}
        if len(shape) != 1:
            raise ValueError(f"`sources` (upsampled: {sorted(shape)}) must have one shape.")
        fields = {"act": ACTIVATIONS.index(act)}
        for i, f in enumerate(factors):
            fields[f"fh{i}"] = fields[f"fw{i}"] = f
        if coefficients:
            fields["w"] = self._weight(np.asarray(coefficients, np.float32))
        return self._elementwise(ADD, sources, self._tensor(*shape.pop()), **fields)

    def _elementwise(self, kind: int, sources: Sequence[Ref], out: Ref, **fields: int) -> Ref:
        for s in sources:
            self._use(s, cur=True)
        self._tensors[out.index].needs_cur = True
        return self._record(kind, out, sources, "", **fields)

    def pool(
        self,
        x: Ref,
        kind: str,
        window: tuple[int, int],
        strides: tuple[int, int],
        padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    ) -> Ref:
        """One of `POOLS`: max, mean (padding counted), mean over valid positions, or sum."""
        sizes = [
            (n + sum(p) - k) // s + 1
            for n, p, k, s in zip((x.h, x.w), padding, window, strides, strict=True)
        ]
        out = self._tensor(sizes[0], sizes[1], x.c)
        fields = {"kh": window[0], "kw": window[1], "sh": strides[0], "sw": strides[1]}
        fields.update(pt=padding[0][0], pl=padding[1][0], mode=POOLS.index(kind))
        return self._elementwise(POOL, [x], out, **fields)

    def affine(
        self,
        x: Ref,
        scale: np.ndarray | float | None = None,
        shift: np.ndarray | float | None = None,
        *,
        act: str = "none",
    ) -> Ref:
        """act(x * scale + shift); scale and shift scalar or per channel."""
        out = self._tensor(x.h, x.w, x.c)
        fields = {"act": ACTIVATIONS.index(act)}
        for key, value in (("w", scale), ("bias", shift)):
            if value is not None:
                full = np.broadcast_to(np.asarray(value, np.float32), (x.c,))
                fields[key] = self._weight(packing.pad_channels(full, round_up(x.c, 16)))
        return self._elementwise(AFFINE, [x], out, **fields)

    def concat(self, sources: Sequence[Ref], factors: Sequence[int] | None = None) -> Ref:
        """Channels of all sources, nearest-upsampled, one behind the other."""
        factors = factors or [1] * len(sources)
        first, f0 = sources[0], factors[0]
        out = self._tensor(first.h * f0, first.w * f0, sum(s.c for s in sources))
        fields = {f"{k}{i}": f for i, f in enumerate(factors) for k in ("fh", "fw")}
        return self._elementwise(CONCAT, sources, out, **fields)

    def mean(self, x: Ref, *, total: bool = False) -> Ref:
        """Mean (or sum) over all positions, `(B, 1, 1, c)`."""
        return self._elementwise(MEAN, [x], self._tensor(1, 1, x.c), mode=int(total))

    def binary(self, kind: str, x: Ref, y: Ref, *, act: str = "none") -> Ref:
        """`BINARIES` of x and y, where y has the shape of x or is `(B, 1, 1, c)`."""
        if y.c != x.c or (y.h, y.w) not in ((x.h, x.w), (1, 1)):
            raise ValueError(f"`y` (={y}) must have the shape of `x` (={x}) or one position.")
        fields = {"mode": BINARIES.index(kind), "act": ACTIVATIONS.index(act)}
        return self._elementwise(BINARY, [x, y], self._tensor(x.h, x.w, x.c), **fields)

    def output(self, *maps: Ref) -> int:
        """Returns a map from the program, or the values of several one behind the other.

        Gives the position among the outputs.
        """
        sizes = [x.h * x.w * x.c for x in maps]
        alone = len(maps) == 1
        self._outputs.append((maps[0].h, maps[0].w, maps[0].c) if alone else (sum(sizes),))
        for i, x in enumerate(maps):
            self._use(x, cur=True)
            count, at = sum(sizes), sum(sizes[:i])
            self._record(OUTPUT, x, [x], io=len(self._outputs) - 1, count=count, mode=at)
        return len(self._outputs) - 1

    # -- layout ------------------------------------------------------------------------------------
    def _place_state(self, op: _OpSpec, arena: Arena) -> None:
        f, out = op.fields, self._tensors[op.out]
        if f["kind"] == MEAN:
            x = self._tensors[op.sources[0]]
            f["z"] = arena.take(-(-x.h // 8) * -(-x.w // 8) * x.cs)
        if f["kind"] != CONV:
            return
        x, blocks = self._tensors[op.sources[0]], f["nbh"] * f["nbw"]
        policy = POLICIES[f["policy"]]
        if policy == "previous" or f["res"] >= 0:
            if f["act"] == 0 and out.needs_cur and (policy == "previous" or f["res"] < 0):
                wp = out.padded[1]
                f["z"] = out.cur + (out.low[0] * wp + out.low[1]) * out.cs
                f["zpitch"] = wp * out.cs
            else:
                f["z"], f["zpitch"] = arena.take(out.h * out.w * out.cs), out.w * out.cs
        if policy == "closed_loop":
            tile = [
                (f["b"] - 1) * f["s" + a] + (f["k" + a] - 1) * f["d" + a] + 1 for a in ("h", "w")
            ]
            f["ref"] = arena.take(blocks * tile[0] * tile[1] * x.cs)
        if policy != "previous":
            f["sig"] = arena.take(1 + blocks)
        if policy == "accumulate":
            f["acc"] = arena.take(blocks)
        if f["nsrc"] == 2 and policy != "closed_loop":
            f["top"] = arena.take(blocks * x.cs)

    def finish(self) -> "Program":
        """Lays out everything and gives the program."""
        arena = Arena()
        for op in self._ops:
            if op.fields["kind"] == OUTPUT:
                continue
            t = self._tensors[op.out]
            t.dies = max(t.dies, t.born)
        place(self._tensors, arena)
        for op in self._ops:
            self._place_state(op, arena)
        words = [_MAGIC, len(self._tensors), len(self._ops), arena.size, self._mask_size]
        words += [len(self._inputs), len(self._outputs), 0]
        for t in self._tensors:
            words += t.words()
        for op in self._ops:
            row = [op.fields.get(name, 0) for name in _FIELDS]
            words += row + [0] * (_WORDS - len(row))
        empty = np.zeros(16, np.float32)
        return Program(
            words=np.asarray(words, np.int32),
            weights=np.concatenate([*self._weights, empty]),
            gates=np.concatenate([*self._gates, empty]),
            state_size=arena.size,
            mask_size=self._mask_size,
            masks=dict(self._masks),
            inputs=tuple(self._inputs),
            outputs=tuple(self._outputs),
            names=tuple(op.name or _KINDS[op.fields["kind"]] for op in self._ops),
        )


def gate_words(
    gate: str, params: np.ndarray, factor: float, count: float, channels: int, stride: int
) -> np.ndarray:
    """Gate parameters as the engine reads them (csrc/kernels/gate.h)."""
    params = params.ravel()
    if gate not in LINEAR:
        return np.asarray([params[0], factor, count, 0.0], np.float32)
    taps = params[1:].reshape(-1, channels)
    kernel = np.zeros((taps.shape[0], stride), np.float32)
    kernel[:, :channels] = taps
    head = np.zeros(16, np.float32)
    head[0] = params[0]
    return np.concatenate([head, kernel.ravel()])


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A finished program: plain arrays, and `apply`, a pure function of them.

    Attributes:
      words: the program, int32.
      weights: packed weights, float32.
      gates: packed gate parameters, float32; thresholds are data, changing one compiles nothing.
      state_size: floats of state per stream.
      mask_size: blocks of all convolutions per stream.
      masks: per convolution, where its blocks lie in the masks.
      inputs, outputs: `(h, w, c)` of each frame in and each result; `(n,)` of several maps.
      names: of the operations, in order, for profiles.
    """

    words: np.ndarray
    weights: np.ndarray
    gates: np.ndarray
    state_size: int
    mask_size: int
    masks: dict[str, MaskSlot]
    inputs: tuple[tuple[int, int, int], ...]
    outputs: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]

    def init_state(self, batch: int) -> jax.Array:
        """State of `batch` fresh streams, `(batch, state_size)`; donate it."""
        return jnp.zeros((batch, self.state_size), jnp.float32)

    def reset(self, state: jax.Array, streams: jax.Array | None = None) -> jax.Array:
        """Makes the streams where `streams` (B,) is true (default all) compute everything next."""
        warm = state[:, 0] if streams is None else jnp.where(streams, 0.0, state[:, 0])
        return state.at[:, 0].set(jnp.zeros_like(warm) if streams is None else warm)

    @functools.cached_property
    def constants(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Words, weights and gate parameters on the device: pass them to `apply` as arguments."""
        # Concrete even when first asked for inside a trace, since the property is kept.
        with jax.ensure_compile_time_eval():
            return jnp.asarray(self.words), jnp.asarray(self.weights), jnp.asarray(self.gates)

    def _blank(self, batch: int) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct((batch, *shape), jnp.float32) for shape in self.outputs]

    def apply(
        self,
        constants: tuple[jax.Array, jax.Array, jax.Array],
        state: jax.Array,
        *frames: jax.Array,
        kept: Sequence[jax.Array] = (),
        threads: int = 0,
    ) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
        """One frame of every stream: (outputs, state, masks `(B, mask_size)`).

        `kept` are the outputs of the last frame (zeros before the first), in any shape of as many
        floats: they become those of this one, written where they changed. Donate them.
        """
        library.load()
        batch = state.shape[0]
        f32 = jnp.float32
        results: list[Any] = [
            jax.ShapeDtypeStruct(state.shape, f32),
            jax.ShapeDtypeStruct((batch, self.mask_size), f32),
            *(jax.ShapeDtypeStruct(a.shape, f32) for a in kept or self._blank(batch)),
        ]
        aliases = {3: 0} | {4 + len(frames) + i: 2 + i for i in range(len(kept))}
        call = jax.ffi.ffi_call(library.TARGET, results, input_output_aliases=aliases)
        new, masks, *outputs = call(*constants, state, *frames, *kept, threads=np.int64(threads))
        return tuple(outputs), new, masks

    def fired(self, masks: jax.Array) -> Mapping[str, jax.Array]:
        """Masks by convolution, each `(B, nh, nw)`."""
        return {
            name: masks[:, s.offset : s.offset + s.grid[0] * s.grid[1]].reshape(-1, *s.grid)
            for name, s in self.masks.items()
        }
