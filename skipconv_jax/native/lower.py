"""Nodes of a folded graph to operations of the native engine."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from skipconv_jax.native import schema
from skipconv_jax.native.builder import ProgramBuilder
from skipconv_jax.native.layout import Ref
from skipconv_jax.native.specs import ConvSpec, GateSpec
from skipconv_jax.ops import AlwaysGate, GumbelGate, InputNormGate, OutputNormGate, policy_name
from skipconv_jax.ops.gates import Gate, GateParams
from skipconv_jax.program import fold as g
from skipconv_jax.transform import Rule

_XLA = (
    g.ChannelsNode,
    g.CompareNode,
    g.CropNode,
    g.DepthToSpaceNode,
    g.LayoutNode,
    g.PReluNode,
    g.PadNode,
    g.ReduceNode,
    g.ResizeNode,
    g.SelectNode,
    g.SoftmaxNode,
    g.SpaceToDepthNode,
    g.SpatialMaxNode,
)
Avals = Mapping[int, jax.ShapeDtypeStruct]
_ACT = {"logistic": "sigmoid"}
_FLIPPED = {"mul": "mul", "add": "add", "max": "max", "min": "min", "sub": "rsub", "div": "rdiv"}


def position_shape(aval: jax.ShapeDtypeStruct) -> tuple[int, int, int] | None:
    """(h, w, c) of a tensor `(B, h, w, c)` or `(B, c)`; None where the engine has none such."""
    if aval.dtype != np.float32 or 0 in aval.shape:
        return None
    if len(aval.shape) == 4:
        return aval.shape[1], aval.shape[2], aval.shape[3]
    return (1, 1, aval.shape[1]) if len(aval.shape) == 2 else None


def why_not(node: g.Node, avals: Avals) -> str:
    """Why a node can't run in the engine; empty where it can."""
    if isinstance(node, g.OtherNode):
        return f"no rule for {node.eqn.primitive.name}"
    if isinstance(node, _XLA):
        return f"{type(node).__name__} stays XLA"
    if isinstance(node, g.ConvNode | g.SumNode) and _act(node.act) not in schema.names("Act"):
        return f"no kernel for {node.act}"
    if isinstance(node, g.FlattenNode):
        return "" if all(position_shape(avals[r]) for r in node.inputs) else "shape or dtype"
    shapes = [position_shape(avals[r]) for r in (*node.inputs, node.output)]
    if None in shapes or len({avals[r].shape[0] for r in (*node.inputs, node.output)}) != 1:
        return "shape or dtype"
    known = [s for s in shapes if s is not None]
    match node:
        case g.ConvNode():
            negative = any(p < 0 for pair in node.conv.padding for p in pair)
            return "negative padding" if negative or node.conv.rank != 2 else ""
        case g.UnaryNode():
            fits = (
                node.power == 2
                if node.fn == "integer_pow"
                else _act(node.fn) in schema.names("Act")
            )
            return "" if fits else f"no kernel for {node.fn}"
        case g.BinaryNode():
            return _binary_why_not(node, known)
        case g.ReshapeNode():
            return "" if known[0] == known[-1] else "reshape"
        case g.ConcatNode():
            return "" if len(node.inputs) <= 8 else "more than 8 inputs"
    return ""


def _binary_why_not(node: g.BinaryNode, shapes: Sequence[tuple[int, int, int]]) -> str:
    x, y, _ = shapes
    if node.fn not in schema.names("BinaryKind"):
        return f"no kernel for {node.fn}"
    if x[2] == y[2] and (x == y or (1, 1) in (x[:2], y[:2])):
        return ""
    return "broadcast"


def _act(name: str) -> str:
    return _ACT.get(name, name)


@dataclasses.dataclass
class Lowering:
    """Writes nodes into one program.

    Attributes:
      builder: of the program.
      avals: shapes of the graph's tensors.
      layers: rule of every Skip-Convolution.
      gates: parameters of their gates.
      refs: tensors of the graph that the program holds.
      flat: what it returns one behind the other.
      scaled: products that the convolutions reading them make, by what `scaled_inputs` finds.
    """

    builder: ProgramBuilder
    avals: Avals
    layers: Mapping[str, Rule]
    gates: Mapping[str, GateParams]
    refs: dict[int, Ref] = dataclasses.field(default_factory=dict)
    flat: dict[int, list[Ref]] = dataclasses.field(default_factory=dict)
    scaled: Mapping[int, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def input(self, ref: int, readers: Sequence[g.Node]) -> None:
        """A tensor that enters the program."""
        h, w, c = position_shape(self.avals[ref]) or (0, 0, 0)
        raw = c < 16 and all(
            isinstance(n, g.ConvNode) and n.conv.groups == 1 and n.residual != ref for n in readers
        )
        self.refs[ref] = self.builder.input(h, w, c, raw=raw)

    def output(self, ref: int) -> None:
        """A tensor that leaves it."""
        self.builder.output(*(self.flat.get(ref) or [self.refs[ref]]))

    def node(self, node: g.Node) -> None:
        """One node, for which `why_not` is empty."""
        if node.output in self.scaled:
            return
        x = [self.refs[self.scaled.get(r, (r, r))[0]] for r in node.inputs]
        if isinstance(node, g.FlattenNode):
            self.flat[node.output] = x
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
                square = node.fn == "integer_pow"
                return b.affine(x[0], act="square" if square else _act(node.fn))
            case g.BinaryNode():
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
            case g.SpatialSumNode():
                return b.spatial(x[0], "sum")
            case g.ConcatNode():
                return b.concat(x)
            case g.ReshapeNode():
                return x[0]
        raise AssertionError(f"{type(node).__name__} has no lowering")

    def _sum(self, node: g.SumNode, x: list[Ref]) -> Ref:
        """At most 8 inputs an operation: longer sums are chained."""
        refs, factors, weights = list(x), list(node.factors), list(node.weights)
        while len(refs) > 8:
            head = self.builder.add(refs[:8], factors=factors[:8], coefficients=weights[:8])
            refs, factors = [head, *refs[8:]], [1, *factors[8:]]
            weights = [1.0, *weights[8:]] if weights else []
        return self.builder.add(refs, factors=factors, coefficients=weights, act=_act(node.act))

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
        act=_act(node.act),
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


def gate_spec(node: g.ConvNode, gate: Gate, params: GateParams) -> GateSpec:
    """A gate as the engine takes it.

    Raises:
      ValueError: the engine does not have it.
    """
    if type(gate) is AlwaysGate:
        return GateSpec("always", block=gate.block)
    if type(gate) is GumbelGate:
        flat = [np.ravel(params["bias"]), np.ravel(params["kernel"])]
        kind = "magnitude" if gate.sees == "magnitude" else "linear"
        return GateSpec(kind, np.concatenate(flat), gate.block)
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
    return GateSpec("norm", [float(params["threshold"])], gate.block, factor, count)
