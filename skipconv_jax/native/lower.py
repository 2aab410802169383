"""Nodes of a folded graph to operations of the native engine."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from skipconv_jax.native import lower_quantised, schema
from skipconv_jax.native.byte_builder import ByteBuilder
from skipconv_jax.native.layout import Ref
from skipconv_jax.native.operations import Avals, activation
from skipconv_jax.native.schema import MAX_SOURCES
from skipconv_jax.native.specs import ConvSpec, GateSpec
from skipconv_jax.ops import AlwaysGate, GumbelGate, InputNormGate, OutputNormGate, policy_name
from skipconv_jax.ops.gates import Gate, GateParams
from skipconv_jax.ops.quantised import Grid
from skipconv_jax.program import fold as g
from skipconv_jax.transform import Rule

FEW = 16  # channels from which on a tensor is stored in whole vectors without waste
_FLIPPED = {"mul": "mul", "add": "add", "max": "max", "min": "min", "sub": "rsub", "div": "rdiv"}


@dataclasses.dataclass
class Lowering:
    """Writes nodes into one program.

    Attributes:
      builder: of the program.
      avals: shapes of the graph's tensors.
      layers: rule of every Skip-Convolution.
      gates: parameters of their gates.
      refs: tensors of the graph that the program holds.
      flat: what it returns one behind the other; bytes that leave as real numbers with their grid.
      leaving: real numbers made of bytes that nothing in the program reads.
      channels_first: frames that are given so.
      leave_first: results that are wanted so.
      scaled: products that the convolutions reading them make, by what `scaled_inputs` finds.
    """

    builder: ByteBuilder
    avals: Avals
    layers: Mapping[str, Rule]
    gates: Mapping[str, GateParams]
    refs: dict[int, Ref] = dataclasses.field(default_factory=dict)
    flat: dict[int, list[tuple[Ref, Grid | None]]] = dataclasses.field(default_factory=dict)
    leaving: Collection[int] = ()
    scaled: Mapping[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
    channels_first: Collection[int] = ()
    leave_first: Collection[int] = ()

    def input(self, ref: int, nodes: Sequence[g.Node]) -> None:
        """A tensor that enters the program, of these nodes."""
        readers = [n for n in nodes if ref in n.inputs]
        first = ref in self.channels_first
        aval = self.avals[ref]
        h, w, c = lower_quantised.byte_shape(aval) or (0, 0, 0)
        grid = lower_quantised.entry_grid(aval, readers)
        if grid is not None:
            inside = {ref} | {n.output for n in readers if isinstance(n, g.QuantizeNode)}
            raw = lower_quantised.enters_raw(c, [n for n in nodes if inside & set(n.inputs)])
            self.refs[ref] = self.builder.byte_input(h, w, c, grid, raw=raw, channels_first=first)
            return
        raw = c < FEW and all(
            isinstance(n, g.ConvNode) and n.conv.groups == 1 and n.residual != ref for n in readers
        )
        self.refs[ref] = self.builder.input(h, w, c, raw=raw, channels_first=first)

    def output(self, ref: int) -> None:
        """A tensor that leaves it."""
        if ref in self.leave_first:
            self.builder.output(self.refs[ref], channels_first=True)
            return
        raw = None
        if lower_quantised.is_bytes(self.avals[ref]):
            raw = lower_quantised.raw_grid(str(self.avals[ref].dtype))
        parts = self._parts(ref)
        self.builder.mixed_output(*((x, grid or raw) for x, grid in parts))

    def _parts(self, ref: int) -> list[tuple[Ref, Grid | None]]:
        return self.flat.get(ref) or [(self.refs[ref], None)]

    def node(self, node: g.Node) -> None:
        """One node, for which `why_not` is empty."""
        if node.output in self.scaled:
            return
        if isinstance(node, g.FlattenNode):
            self.flat[node.output] = [part for r in node.inputs for part in self._parts(r)]
            return
        if isinstance(node, g.DequantizeNode) and node.output in self.leaving:
            self.flat[node.output] = [(x, node.grid) for x, _ in self._parts(node.inputs[0])]
            return
        x = [self.refs[self.scaled.get(r, (r, r))[0]] for r in node.inputs]
        if isinstance(node, g.QuantizeNode) and self.builder.of_bytes(x[0]):
            self.refs[node.output] = x[0]  # it entered so
            return
        if lower_quantised.concerns(node, self.avals):
            made = lower_quantised.ByteLowering(self.builder, self.avals, self.layers, self.gates)
            self.refs[node.output] = made.node(node, x)
            return
        self.refs[node.output] = self._lower(node, x)

    def _lower(self, node: g.Node, x: list[Ref]) -> Ref:
        b = self.builder
        match node:
            case g.ConvNode():
                return self._conv(node, x)
            case g.SumNode():
                return self._sum(node, x)
            case g.AffineNode():
                return b.affine(x[0], node.scale, node.shift)
            case g.UnaryNode():
                return (
                    self._power(node, x[0])
                    if node.fn == "integer_pow"
                    else b.affine(x[0], act=activation(node.fn, node.params))
                )
            case g.PReluNode():
                return b.affine(x[0], act=activation("prelu", (), node.slope, x[0].c))
            case g.BinaryNode():
                channels = max(r.c for r in x)
                x = [r if r.c == channels else b.channels([r], (0,) * channels) for r in x]
                swap = (x[0].h, x[0].w) == (1, 1) and (x[1].h, x[1].w) != (1, 1)
                return b.binary(_FLIPPED[node.fn] if swap else node.fn, *(x[::-1] if swap else x))
            case g.UpsampleNode():
                return b.add(x, factors=[node.factor])
            case g.PoolNode():
                window, strides = (
                    (node.window[0], node.window[1]),
                    (node.strides[0], node.strides[1]),
                )
                return b.pool(x[0], node.fn, window, strides, node.padding)
            case g.SpatialSumNode() | g.SpatialMaxNode():
                return b.spatial(x[0], "max" if isinstance(node, g.SpatialMaxNode) else "sum")
            case g.ConcatNode():
                return self._joined(x)
            case g.ChannelsNode():
                return b.channels(x if len(x) <= MAX_SOURCES else [self._joined(x)], node.index)
            case g.SoftmaxNode():
                return b.softmax(x[0])
            case g.ReduceNode():
                return b.reduce(x[0], node.fn)
            case g.ReshapeNode():
                return x[0]
        return self._moved(node, x[0])

    def _moved(self, node: g.Node, x: Ref) -> Ref:
        """What positions change places in."""
        b = self.builder
        match node:
            case g.PadNode():
                (top, bottom), (left, right) = node.padding
                size = x.h + top + bottom, x.w + left + right
                return b.window(x, (-top, -left), size, value=node.value)
            case g.CropNode():
                starts, sizes, strides = (
                    (v[0], v[1]) for v in (node.starts, node.sizes, node.strides)
                )
                return b.window(x, starts, sizes, strides=strides)
            case g.ResizeNode():
                return b.resize(x, node.taps[0], node.taps[1])
            case g.DepthToSpaceNode():
                return b.depth_to_space(x, (node.block,) * 2, interleaved=node.interleaved)
            case g.SpaceToDepthNode():
                return b.space_to_depth(x, (node.block,) * 2, interleaved=node.interleaved)
        raise AssertionError(f"{type(node).__name__} has no lowering")

    def _power(self, node: g.UnaryNode, x: Ref) -> Ref:
        made = x
        for _ in range(node.power - 1):
            made = self.builder.binary("mul", made, x)
        return made

    def _joined(self, x: list[Ref]) -> Ref:
        """A concatenation; longer ones than an operation takes are chained."""
        while len(x) > MAX_SOURCES:
            x = [self.builder.concat(x[:MAX_SOURCES]), *x[MAX_SOURCES:]]
        return self.builder.concat(x)

    def _sum(self, node: g.SumNode, x: list[Ref]) -> Ref:
        """Longer sums than an operation takes are chained."""
        refs, factors, weights = list(x), list(node.factors), list(node.weights)
        n = MAX_SOURCES
        while len(refs) > n:
            head = self.builder.add(refs[:n], factors=factors[:n], coefficients=weights[:n])
            refs, factors = [head, *refs[n:]], [1, *factors[n:]]
            weights = [1.0, *weights[n:]] if weights else []
        act = activation(node.act, node.params)
        return self.builder.add(refs, factors=factors, coefficients=weights, act=act)

    def _conv(self, node: g.ConvNode, x: list[Ref]) -> Ref:
        scale = self.scaled.get(node.inputs[0])
        rule = self.layers.get(node.name)
        policy, gate = "accumulate", GateSpec("always")
        if rule is not None:
            policy = native_policy(node, rule)
            gate = gate_spec(node, rule.gate, self.gates[node.name])
        return self.builder.conv(
            x[0],
            conv_spec(node, policy, gate),
            residual=None if node.residual is None else x[1],
            scale=None if scale is None else self.refs[scale[1]],
        )


def scaled_inputs(graph: g.Graph, nodes: Sequence[g.Node]) -> dict[int, tuple[int, int]]:
    """Products x * s, s of one position, that one plain 1x1 convolution reads: tensor to (x, s)."""
    uses, found = graph.uses(), {}
    products = {n.output: n for n in nodes if isinstance(n, g.BinaryNode) and n.fn == "mul"}
    for node in nodes:
        product = products.get(node.inputs[0]) if isinstance(node, g.ConvNode) else None
        if product is None or uses[product.output] != 1 or not _is_pointwise(node):
            continue
        for x, s in (product.inputs, product.inputs[::-1]):
            if graph.avals[s].shape[1:3] == (1, 1) and len(graph.avals[s].shape) == 4:
                found[product.output] = x, s
    return found


def _is_pointwise(node: g.Node) -> bool:
    if not isinstance(node, g.ConvNode):
        return False
    conv = node.conv
    padded = any(p for pair in conv.padding for p in pair)
    return conv.window == conv.strides == (1, 1) and conv.groups == 1 and not padded


def conv_spec(node: g.ConvNode, policy: str, gate: GateSpec) -> ConvSpec:
    """A convolution as the engine takes it."""
    conv = node.conv
    return ConvSpec(
        node.kernel,
        node.bias,
        node.name,
        strides=(conv.strides[0], conv.strides[1]),
        padding=conv.padding,
        dilation=(conv.dilation[0], conv.dilation[1]),
        groups=conv.groups,
        act=activation(node.act, node.params, node.slope, conv.out_channels),
        policy=policy,
        gate=gate,
    )


def native_policy(node: g.ConvNode, rule: Rule) -> str:
    """The engine's name of a rule's policy.

    Raises:
      ValueError: it has none.
    """
    policy = policy_name(rule.policy) if rule.policy is not None else "previous"
    known = schema.names("Policy")
    if policy not in known:
        raise ValueError(
            f"`policy` of {node.name!r} (={rule.policy}) must be one of {known} in a native "
            "plan; run `net.apply` for the others."
        )
    return policy


def gate_values(gate: Gate, params: GateParams, taps: np.ndarray | None = None) -> np.ndarray:
    """Parameters of a gate that the engine has, as `GateSpec.params` wants them.

    Args:
      gate: of the convolution.
      params: of the gate.
      taps: of the convolution, where rewriting moved them (see `ConvNode.taps`).
    """
    if type(gate) is AlwaysGate:
        return np.zeros(1, np.float32)
    if type(gate) is GumbelGate:
        kernel = np.ravel(params["kernel"])
        kernel = kernel if taps is None else kernel[taps]
        return np.concatenate([np.ravel(params["bias"]), np.ravel(kernel)])
    return np.asarray([float(params["threshold"])], np.float32)


def gate_spec(node: g.ConvNode, gate: Gate, params: GateParams) -> GateSpec:
    """A gate as the engine takes it.

    Raises:
      ValueError: the engine does not have it.
    """
    if type(gate) is AlwaysGate:
        return GateSpec("always", block=gate.block)
    if type(gate) is GumbelGate:
        kind = "magnitude" if gate.sees == "magnitude" else "linear"
        return GateSpec(kind, gate_values(gate, params, node.taps), gate.block)
    if type(gate) not in (InputNormGate, OutputNormGate):
        raise ValueError(
            f"`gate` of {node.name!r} (={gate}) must be an InputNormGate, OutputNormGate, "
            "GumbelGate or AlwaysGate in a native plan; run `net.apply` for the others."
        )
    mean = getattr(gate, "reduction", "mean") == "mean"
    conv = node.conv
    count = float(conv.window[0] * conv.window[1] * conv.in_channels) if mean else 1.0
    factor = 1.0
    if type(gate) is OutputNormGate:
        factor = node.weights_mean if mean else node.weights_sum
    return GateSpec("norm", gate_values(gate, params), gate.block, factor, count)
