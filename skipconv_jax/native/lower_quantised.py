"""Nodes on bytes to operations of the native engine."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from skipconv_jax.native.byte_builder import MAX_WIDTH, ByteBuilder, ByteConvSpec, Moved, least
from skipconv_jax.native.layout import Ref
from skipconv_jax.native.schema import MAX_SOURCES
from skipconv_jax.native.specs import ConvSpec, GateSpec
from skipconv_jax.ops import AlwaysGate, ClosedLoop, InputNormGate, OutputNormGate
from skipconv_jax.ops.gates import Gate, GateParams
from skipconv_jax.ops.quantised import Grid, norm_factor
from skipconv_jax.program import fold as g
from skipconv_jax.transform import Rule

Avals = Mapping[int, jax.ShapeDtypeStruct]
BYTES = ("int8", "uint8")
_ARITHMETIC = (
    g.QuantizeNode, g.DequantizeNode, g.QConvNode, g.QTableNode, g.QSumNode, g.QMulNode,
    g.QMeanNode,
)  # fmt: skip
_MOVERS = (
    g.UpsampleNode, g.CropNode, g.ConcatNode, g.ChannelsNode, g.SpaceToDepthNode, g.ReshapeNode,
    g.FlattenNode, g.ResizeNode, g.PadNode, g.PoolNode,
)  # fmt: skip


def is_bytes(aval: jax.ShapeDtypeStruct) -> bool:
    """Whether a tensor is one of bytes."""
    return str(aval.dtype) in BYTES


def raw_grid(dtype: str) -> Grid:
    """The grid on which a byte stands for itself: how bytes cross between programs and XLA."""
    return Grid(1.0, 0, dtype)


def concerns(node: g.Node, avals: Avals) -> bool:
    """Whether a node is this module's, and not one of real numbers."""
    return isinstance(node, _ARITHMETIC) or any(
        is_bytes(avals[r]) for r in (*node.inputs, node.output)
    )


def byte_shape(aval: jax.ShapeDtypeStruct) -> tuple[int, int, int] | None:
    """(h, w, c) of bytes or float32 `(B, h, w, c)` or `(B, c)`; None where the engine has none."""
    if not (is_bytes(aval) or aval.dtype == np.float32) or 0 in aval.shape:
        return None
    if len(aval.shape) == 4:
        return aval.shape[1], aval.shape[2], aval.shape[3]
    return (1, 1, aval.shape[1]) if len(aval.shape) == 2 else None


def entry_grid(aval: jax.ShapeDtypeStruct, readers: Sequence[g.Node]) -> Grid | None:
    """The grid on which a tensor enters a program; None for one that enters as real numbers."""
    if is_bytes(aval):
        return raw_grid(str(aval.dtype))
    grids = [n.grid if isinstance(n, g.QuantizeNode) else None for n in readers]
    return grids[0] if grids and all(grid == grids[0] for grid in grids) else None


def enters_raw(channels: int, readers: Sequence[g.Node]) -> bool:
    """Whether what enters as bytes is stored with 4 channels: its readers have to allow it."""
    moved = (
        g.QuantizeNode, g.UpsampleNode, g.CropNode, g.PadNode, g.ChannelsNode, g.SpaceToDepthNode,
    )  # fmt: skip
    return channels <= 4 and all(
        isinstance(n, moved) or (isinstance(n, g.QConvNode) and n.conv.groups == 1) for n in readers
    )


def why_not(node: g.Node, avals: Avals) -> str:
    """Why a node on bytes can't run in the engine, one line; empty where it can."""
    if not isinstance(node, _ARITHMETIC + _MOVERS):
        return f"{type(node).__name__} of bytes"
    flat = isinstance(node, g.FlattenNode) or (
        isinstance(node, g.DequantizeNode) and len(avals[node.output].shape) == 3
    )
    shapes = []
    for ref in (*node.inputs, *(() if flat else (node.output,))):
        shape = byte_shape(avals[ref])
        if shape is None and not isinstance(node, g.DequantizeNode):
            return f"{avals[ref].dtype}{list(avals[ref].shape)} is no (B, h, w, c) or (B, c)"
        if shape is not None and shape[1] > MAX_WIDTH:
            return f"a map of bytes {shape[1]} wide, more than {MAX_WIDTH}"
        shapes.append(shape)
    if len({avals[r].shape[0] for r in (*node.inputs, node.output)}) != 1:
        return "mixes streams"
    return _why_not(node, shapes)


def _why_not(node: g.Node, shapes: Sequence[tuple[int, int, int] | None]) -> str:
    match node:
        case g.QConvNode():
            if node.conv.rank != 2:
                return f"a convolution over {node.conv.rank} axes"
            if any(p < 0 for pair in node.conv.padding for p in pair):
                return "negative padding"
            real = node.finish.dtype == "float32" and node.conv.groups > 1
            return "real numbers of a grouped convolution of bytes" if real else ""
        case g.QSumNode():
            return "" if len(shapes) - 1 <= MAX_SOURCES else f"a sum of more than {MAX_SOURCES}"
        case g.QMulNode():
            a, b, _ = shapes
            fits = a and b and a[2] == b[2] and (a == b or (1, 1) in (a[:2], b[:2]))
            return "" if fits else f"broadcasts {a} and {b}"
        case g.PoolNode():
            return "" if node.fn == "max" else f"a pool {node.fn!r} of bytes"
        case g.PadNode():
            return "negative padding" if min(min(p) for p in node.padding) < 0 else ""
        case g.CropNode():
            return "" if min(node.strides) > 0 else "a reversed axis"
        case g.ChannelsNode():
            return "channels of zeros" if min(node.index) < 0 else ""
        case g.SpaceToDepthNode():
            fits = node.block**2 <= MAX_SOURCES
            return "" if fits else f"blocks of {node.block} by {node.block} of bytes"
        case g.ResizeNode():
            copies = all(i.shape[1] == 1 and (w == 1).all() for i, w in node.taps)
            return "" if copies else "an interpolation of bytes"
        case g.ReshapeNode():
            return "" if shapes[0] == shapes[-1] else f"reshapes {shapes[0]} to {shapes[-1]}"
    return ""


def why_not_rule(rule: Rule) -> str:
    """Why a rule can't be followed on bytes; empty where it can."""
    if type(rule.gate) not in (AlwaysGate, InputNormGate, OutputNormGate):
        return f"no int8 kernel for {rule.gate}"
    known = rule.policy is not None and type(rule.policy) is ClosedLoop
    return "" if known else f"no int8 kernel for the policy {rule.policy}; take ClosedLoop()"


def byte_gate(node: g.QConvNode, gate: Gate, params: GateParams) -> GateSpec:
    """A gate on integers as the engine takes it; `why_not_rule` is empty."""
    if type(gate) is AlwaysGate:
        return GateSpec("always", block=gate.block)
    mean = getattr(gate, "reduction", "mean") == "mean"
    weights = None
    if type(gate) is OutputNormGate:
        weights = node.weights_mean if mean else node.weights_sum
    factor = norm_factor(node.conv, node.grid.scale, mean=mean, weights=weights)
    return GateSpec("norm", [float(params["threshold"])], gate.block, float(factor))


def byte_conv(node: g.QConvNode, rule: Rule | None, gate: GateSpec) -> ByteConvSpec:
    """A convolution of bytes as the engine takes it."""
    conv = node.conv
    spec = ConvSpec(
        node.kernel,
        None,
        node.name,
        strides=(conv.strides[0], conv.strides[1]),
        padding=conv.padding,
        dilation=(conv.dilation[0], conv.dilation[1]),
        groups=conv.groups,
        policy="closed_loop",
        gate=gate,
    )
    grid = node.grid
    return ByteConvSpec(
        spec, grid.zero, grid.dtype, node.bias, node.multiplier, node.finish, rule is None
    )


@dataclasses.dataclass(frozen=True)
class ByteLowering:
    """Writes nodes on bytes into one program.

    Attributes:
      builder: of the program.
      avals: shapes of the graph's tensors.
      layers: rule of every Skip-Convolution.
      gates: parameters of their gates.
    """

    builder: ByteBuilder
    avals: Avals
    layers: Mapping[str, Rule]
    gates: Mapping[str, GateParams]

    def node(self, node: g.Node, x: list[Ref]) -> Ref:
        """One node, for which `why_not` is empty."""
        b = self.builder
        match node:
            case g.QConvNode():
                rule = self.layers.get(node.name)
                gate = GateSpec("always")
                if rule is not None:
                    gate = byte_gate(node, rule.gate, self.gates[node.name])
                return b.byte_conv(x[0], byte_conv(node, rule, gate))
            case g.QuantizeNode():
                return b.quantize(x[0], node.grid)
            case g.DequantizeNode():
                return b.dequantize(x[0], node.grid)
            case g.QTableNode():
                return b.byte_table(x[0], node.table)
            case g.QSumNode():
                return b.byte_sum(x, node.tables, node.finish)
            case g.QMulNode():
                return self._mul(node, x)
            case g.QMeanNode():
                zero = node.zero - self._least(node)
                window = _window(node.window, node.strides, node.padding)
                return b.byte_mean(
                    x[0], window, self._size(node), zero, node.multiplier, node.finish
                )
            case g.PoolNode():
                window = _window(node.window, node.strides, node.padding)
                return b.byte_max(x[0], window, self._size(node))
            case g.ReshapeNode():
                return x[0]
        return self._moved(node, x)

    def _least(self, node: g.Node) -> int:
        return least(self.avals[node.inputs[0]].dtype)

    def _size(self, node: g.Node) -> tuple[int, int]:
        h, w, _ = byte_shape(self.avals[node.output]) or (0, 0, 0)
        return h, w

    def _mul(self, node: g.QMulNode, x: list[Ref]) -> Ref:
        zeros = [
            z - least(self.avals[r].dtype) for z, r in zip(node.zeros, node.inputs, strict=True)
        ]
        order = [0, 1]
        if (x[0].h, x[0].w) == (1, 1) and (x[1].h, x[1].w) != (1, 1):
            order = [1, 0]
        a, b = order
        return self.builder.byte_mul(x[a], x[b], (zeros[a], zeros[b]), node.multiplier, node.finish)

    def _moved(self, node: g.Node, x: list[Ref]) -> Ref:
        """What bytes change places in."""
        b, first = self.builder, x[0]
        match node:
            case g.ConcatNode():
                return self._joined(x)
            case g.ChannelsNode():
                x = x if len(x) <= MAX_SOURCES else [self._joined(x)]
                return b.gather([_still(s) for s in x], runs_of([s.c for s in x], node.index))
            case g.SpaceToDepthNode():
                return self._space_to_depth(node, first)
        rows, columns = _places(node, (first.h, first.w))
        outside = int(node.value) - self._least(node) if isinstance(node, g.PadNode) else 0
        return b.gather([Moved(first, rows, columns)], outside=outside)

    def _joined(self, x: list[Ref]) -> Ref:
        """A concatenation; longer ones than an operation takes are chained."""
        while len(x) > MAX_SOURCES:
            x = [self.builder.gather([_still(s) for s in x[:MAX_SOURCES]]), *x[MAX_SOURCES:]]
        return self.builder.gather([_still(s) for s in x])

    def _space_to_depth(self, node: g.SpaceToDepthNode, x: Ref) -> Ref:
        """Phase (y, x) of the positions is a source of its own."""
        s = node.block
        phases = [Moved(x, range(i, x.h, s), range(k, x.w, s)) for i in range(s) for k in range(s)]
        runs = None
        if node.interleaved:
            runs = [(p, c, 1) for c in range(x.c) for p in range(s * s)]
        return self.builder.gather(phases, runs)


def _places(node: g.Node, size: tuple[int, int]) -> list[list[int]]:
    """Row and column of the input for each of the output; -1 beyond the edge."""
    match node:
        case g.UpsampleNode():
            return [[i for i in range(n) for _ in range(node.factor)] for n in size]
        case g.CropNode():
            cut = zip(node.starts, node.sizes, node.strides, strict=True)
            return [list(range(s, s + (n - 1) * d + 1, d)) for s, n, d in cut]
        case g.PadNode():
            sides = zip(size, node.padding, strict=True)
            return [[-1] * low + list(range(n)) + [-1] * high for n, (low, high) in sides]
        case g.ResizeNode():
            return [index[:, 0].tolist() for index, _ in node.taps]
    raise AssertionError(f"{type(node).__name__} has no lowering on bytes")


def _still(x: Ref) -> Moved:
    return Moved(x, range(x.h), range(x.w))


def _window(
    window: Sequence[int], strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> dict[str, int]:
    """Fields of the schema."""
    return {
        "kh": window[0], "kw": window[1], "sh": strides[0], "sw": strides[1],
        "pt": padding[0][0], "pl": padding[1][0],
    }  # fmt: skip


def runs_of(sizes: Sequence[int], index: Sequence[int]) -> list[tuple[int, int, int]]:
    """Channels of sources one behind the other as runs {source, first channel, length}."""
    place = [(s, c) for s, n in enumerate(sizes) for c in range(n)]
    runs: list[tuple[int, int, int]] = []
    for source, channel in (place[i] for i in index):
        if runs and runs[-1][0] == source and runs[-1][1] + runs[-1][2] == channel:
            runs[-1] = source, runs[-1][1], runs[-1][2] + 1
        else:
            runs.append((source, channel, 1))
    return runs
