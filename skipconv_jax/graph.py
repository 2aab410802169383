"""A traced inference network folded into the few operations a fast engine runs.

`build` traces `fn(variables, x)`, evaluates everything that does not depend on the frame (batch
norm statistics, weight standardisation, constants), recognises the remaining equations as nodes,
and folds: affine maps into the convolution before them, activations and residual adds into what
produces their input. An equation without a rule becomes an `OtherNode` that carries it as it was.

Tensors of nodes are `(B, *spatial, C)`, or `(B, C)` after a mean over space.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops.geometry import Conv
from skipconv_jax.trace import ENTERED, REMAT, leaf_name

Ref = int
ACTIVATIONS = ("none", "relu", "relu6", "swish", "logistic", "tanh")
UNARY = ("relu", "relu6", "swish", "logistic", "tanh", "exp", "abs", "sqrt", "rsqrt", "integer_pow")
BINARY = ("add", "sub", "mul", "div", "max", "min")


@dataclasses.dataclass
class Node:
    """One operation; `output` is the number of the tensor it makes."""

    inputs: tuple[Ref, ...]
    output: Ref


@dataclasses.dataclass
class ConvNode(Node):
    """act(conv(x) + bias + residual).

    Attributes:
      name: of the convolution, as `skip` names it.
      conv: geometry.
      kernel: `(*window, Ci / groups, Co)` float32, what follows it folded in.
      bias: `(Co,)` or None.
      weights_mean: mean |w| of the kernel before folding, for the Output-Norm gate.
      weights_sum: its sum.
      scale: `(Co,)` or None, what was folded into the kernel.
      residual: tensor added before the activation, also the last of `inputs`.
      act: activation after it.
    """

    name: str
    conv: Conv
    kernel: np.ndarray
    bias: np.ndarray | None
    weights_mean: float
    weights_sum: float
    scale: np.ndarray | None = None
    residual: Ref | None = None
    act: str = "none"


@dataclasses.dataclass
class SumNode(Node):
    """act(sum of the inputs), each upsampled (nearest) by an integer factor first."""

    factors: tuple[int, ...]
    act: str = "none"


@dataclasses.dataclass
class AffineNode(Node):
    """scale * x + shift, each a scalar `()` or per channel `(C,)`."""

    scale: np.ndarray
    shift: np.ndarray


@dataclasses.dataclass
class UnaryNode(Node):
    """An element-wise function, one of `UNARY`; `power` for 'integer_pow'."""

    fn: str
    power: int = 1


@dataclasses.dataclass
class BinaryNode(Node):
    """An element-wise function of two tensors, one of `BINARY`; unit axes broadcast."""

    fn: str


@dataclasses.dataclass
class UpsampleNode(Node):
    """Nearest upsampling by an integer factor on every spatial axis."""

    factor: int


@dataclasses.dataclass
class PoolNode(Node):
    """'max' or 'sum' over windows; padding (low, high) of -inf or 0."""

    fn: str
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]


@dataclasses.dataclass
class SpatialSumNode(Node):
    """Sum over all spatial axes; `(B, C)`, or `(B, 1, 1, C)` after a reshape."""


@dataclasses.dataclass
class ConcatNode(Node):
    """Concatenation along channels."""


@dataclasses.dataclass
class ReshapeNode(Node):
    """A reshape that only adds or drops unit spatial axes."""


@dataclasses.dataclass
class OtherNode(Node):
    """An equation without a rule. `operands` holds tensor numbers (as `Ref`) and constants.

    Attributes:
      eqn: the equation.
      operands: per operand a tensor number, or a constant array.
      outputs: all tensors it makes; `output` is the first.
      name: of the convolution, where it is one.
    """

    eqn: Any
    operands: tuple[Any, ...]
    outputs: tuple[Ref, ...]
    name: str = ""


@dataclasses.dataclass
class Graph:
    """Nodes in order of evaluation.

    Attributes:
      nodes: operations.
      inputs: tensor numbers of the frame's arrays.
      outputs: per output array a tensor number, or a constant array.
      tree: structure of the output.
      avals: shape and dtype of every tensor.
    """

    nodes: list[Node]
    inputs: list[Ref]
    outputs: list[Any]
    tree: Any
    avals: dict[Ref, jax.ShapeDtypeStruct]

    def uses(self) -> Counter[Ref]:
        """How often each tensor is read."""
        counts: Counter[Ref] = Counter(r for node in self.nodes for r in node.inputs)
        counts.update(r for r in self.outputs if isinstance(r, int))
        return counts


def build(fn: Callable[..., Any], variables: Any, x: Any) -> Graph:
    """Traces `fn(variables, x)` with concrete variables and folds it.

    Args:
      fn: pure function.
      variables: pytree of concrete arrays.
      x: frame; only shapes and dtypes are read.
    """
    graph = _Reader(variables).read(fn, x)
    for rewrite in _REWRITES:
        _drop_unused(graph)
        rewrite(graph)
    _drop_unused(graph)
    return graph


class _Reader:
    """First pass: equations to nodes, everything that is independent of the frame evaluated."""

    def __init__(self, variables: Any) -> None:
        self.variables = variables
        self.nodes: list[Node] = []
        self.avals: dict[Ref, jax.ShapeDtypeStruct] = {}
        self._uses: Counter[str] = Counter()

    def read(self, fn: Callable[..., Any], x: Any) -> Graph:
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(self.variables, x)
        named, _ = jax.tree_util.tree_flatten_with_path(self.variables)
        arguments: list[Any] = []
        for path, leaf in named:
            array = np.asarray(leaf)
            arguments.append(_Known(array, leaf_name(path)))
        inputs = [self._new(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(x)]
        consts = [_Known(np.asarray(c)) for c in closed.consts]
        outputs = self._run(closed.jaxpr, consts, [*arguments, *inputs])
        final = [o.array if isinstance(o, _Known) else o for o in outputs]
        return Graph(self.nodes, inputs, final, jax.tree.structure(shape), self.avals)

    def _new(self, shape: Sequence[int], dtype: Any) -> Ref:
        ref = len(self.avals)
        self.avals[ref] = jax.ShapeDtypeStruct(tuple(shape), dtype)
        return ref

    def _run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

        def look(atom: Any) -> Any:
            return _Known(np.asarray(atom.val)) if isinstance(atom, jex.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            values = [look(v) for v in eqn.invars]
            env.update(zip(eqn.outvars, self._equation(eqn, values), strict=True))
        return [look(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, values: list[Any]) -> list[Any]:
        primitive = eqn.primitive.name
        body = eqn.params.get(ENTERED[primitive]) if primitive in ENTERED else None
        if body is not None:
            return self._run(body.jaxpr, [_Known(np.asarray(c)) for c in body.consts], values)
        if primitive in REMAT:
            return self._run(eqn.params["jaxpr"], [], values)
        if all(isinstance(v, _Known) for v in values):
            return _evaluate(eqn, values)
        rule = _RULES.get(primitive)
        made = rule(self, eqn, values) if rule else None
        return [made] if made is not None else self._other(eqn, values)

    def _other(self, eqn: Any, values: list[Any]) -> list[Any]:
        outputs = tuple(self._new(v.aval.shape, v.aval.dtype) for v in eqn.outvars)
        inputs = tuple(v for v in values if not isinstance(v, _Known))
        operands = tuple(v.array if isinstance(v, _Known) else v for v in values)
        name = ""
        if eqn.primitive.name == "conv_general_dilated":
            name = self.site_name(values[1])
        self.nodes.append(OtherNode(inputs, outputs[0], eqn, operands, outputs, name))
        return list(outputs)

    def add(self, eqn: Any, make: Callable[[Ref], Node]) -> Ref:
        """A node whose output has the equation's shape."""
        aval = eqn.outvars[0].aval
        ref = self._new(aval.shape, aval.dtype)
        self.nodes.append(make(ref))
        return ref

    def site_name(self, kernel: Any) -> str:
        """Name of a convolution as `skip` gives it: kernel path, numbered when used again."""
        name = (kernel.origin if isinstance(kernel, _Known) else None) or "constant"
        use = self._uses[name]
        self._uses[name] += 1
        return f"{name}@{use}" if use else name


@dataclasses.dataclass(frozen=True)
class _Known:
    """A constant; `origin` names the variable it comes from."""

    array: np.ndarray
    origin: str | None = None


def _evaluate(eqn: Any, values: list[Any]) -> list[Any]:
    sized = [(v.array.size, -i, v.origin) for i, v in enumerate(values) if v.origin]
    origin = max(sized)[2] if sized else None
    if eqn.primitive.name == "broadcast_in_dim" and len(values) == 1:
        # A view: constants broadcast to whole feature maps would fill the memory.
        shape, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
        expanded = [1] * len(shape)
        for size, at in zip(values[0].array.shape, dims, strict=True):
            expanded[at] = size
        return [_Known(np.broadcast_to(values[0].array.reshape(expanded), shape), origin)]
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    out = eqn.primitive.bind(*functions, *(jnp.asarray(v.array) for v in values), **params)
    arrays = out if eqn.primitive.multiple_results else [out]
    return [_Known(np.asarray(a), origin) for a in arrays]


def _per_channel(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """`()` or `(C,)` where a constant varies along the last axis alone, else None."""
    if array.ndim == 0:
        return array
    if array.ndim != len(shape):
        return None
    constant = [n == 1 or s == 0 for n, s in zip(array.shape, array.strides, strict=True)]
    first = array[(0,) * (array.ndim - 1)]
    if not all(constant[:-1]) and not (array == first).all():
        return None
    return first[0].reshape(()) if constant[-1] else first


def _conv(reader: _Reader, eqn: Any, values: list[Any]) -> Ref | None:
    x, kernel = values
    params = eqn.params
    numbers, shape = params["dimension_numbers"], eqn.invars[0].aval.shape
    rank = len(shape)
    last = (0, rank - 1, *range(1, rank - 1))
    hwio = (rank - 1, rank - 2, *range(rank - 2))
    plain = (tuple(numbers.lhs_spec), tuple(numbers.rhs_spec), tuple(numbers.out_spec)) == (
        last,
        hwio,
        last,
    )
    if isinstance(x, _Known) or not isinstance(kernel, _Known) or not plain:
        return None
    if math.prod(params["lhs_dilation"]) != 1 or params["batch_group_count"] != 1:
        return None
    if eqn.outvars[0].aval.dtype != jnp.float32 or rank != 4:
        return None
    conv = Conv.make(
        shape,
        kernel.array.shape,
        strides=params["window_strides"],
        padding=params["padding"],
        dilation=params["rhs_dilation"],
        groups=params["feature_group_count"],
    )
    name, weight = reader.site_name(kernel), np.abs(kernel.array)
    means = float(weight.mean()), float(weight.sum())
    return reader.add(eqn, lambda out: ConvNode((x,), out, name, conv, kernel.array, None, *means))


def _arithmetic(reader: _Reader, eqn: Any, values: list[Any]) -> Ref | None:
    name = {"add_any": "add"}.get(eqn.primitive.name, eqn.primitive.name)
    left, right = values
    shape = eqn.outvars[0].aval.shape
    if not isinstance(left, _Known) and not isinstance(right, _Known):
        return reader.add(eqn, lambda out: BinaryNode((left, right), out, name))
    x, known, flipped = (right, left, True) if isinstance(left, _Known) else (left, right, False)
    constant = _per_channel(known.array, shape)
    if constant is None or reader.avals[x].shape != shape or constant.dtype != np.float32:
        return None
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    affine: tuple[np.ndarray, np.ndarray] | None = None
    if name == "add":
        affine = one, constant
    elif name == "sub":
        affine = (-one, constant) if flipped else (one, -constant)
    elif name == "mul":
        affine = constant, zero
    elif name == "div" and not flipped:
        affine = one / constant, zero
    if affine is not None:
        scale, shift = affine
        return reader.add(eqn, lambda out: AffineNode((x,), out, scale, shift))
    if name == "max" and constant.ndim == 0 and constant == 0:
        return reader.add(eqn, lambda out: UnaryNode((x,), out, "relu"))
    return None


def _unary(reader: _Reader, eqn: Any, values: list[Any]) -> Ref | None:
    (x,) = values
    name = eqn.primitive.name
    if name == "neg":
        minus, zero = -np.ones((), np.float32), np.zeros((), np.float32)
        return reader.add(eqn, lambda out: AffineNode((x,), out, minus, zero))
    power = eqn.params.get("y", 1)
    return reader.add(eqn, lambda out: UnaryNode((x,), out, name, power))


def _clamp(reader: _Reader, eqn: Any, values: list[Any]) -> Ref | None:
    low, x, high = values
    if isinstance(x, _Known) or not isinstance(low, _Known) or not isinstance(high, _Known):
        return None
    if low.array.size != 1 or high.array.size != 1:
        return None
    if float(low.array.item()) != 0.0 or float(high.array.item()) != 6.0:
        return None
    return reader.add(eqn, lambda out: UnaryNode((x,), out, "relu6"))


def _min(reader: _Reader, eqn: Any, values: list[Any]) -> Ref | None:
    """min(relu(x), 6) is relu6(x)."""
    known = [v for v in values if isinstance(v, _Known)]
    if len(known) == 1 and known[0].array.size == 1 and float(known[0].array.item()) == 6.0:
        (x,) = (v for v in values if not isinstance(v, _Known))
        before = next((n for n in reader.nodes if n.output == x), None)
        if isinstance(before, UnaryNode) and before.fn == "relu":
            return reader.add(eqn, lambda out: UnaryNode(before.inputs, out, "relu6"))
    return _arithmetic(reader, eqn, values)


def _broadcast(reader: _Reader, eqn: Any, values: list[Any]) -> Ref | None:
    """Half of a nearest upsampling: unit axes after each spatial axis are blown up."""
    (x,) = values[:1]
    shape, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    source = reader.avals[x].shape
    if len(values) != 1 or any(source[i] != shape[d] for i, d in enumerate(dims) if source[i] != 1):
        return None
    if math.prod(source) == math.prod(shape):
        return reader.add(eqn, lambda out: ReshapeNode((x,), out))
    return reader.add(eqn, lambda out: _Blown((x,), out, eqn, (x,), (out,)))


class _Blown(OtherNode):
    """A broadcast that a reshape may complete to an upsampling."""


def _reshape(reader: _Reader, eqn: Any, values: list[Any]) -> Ref | None:
    (x,) = values[:1]
    source, shape = reader.avals[x].shape, eqn.outvars[0].aval.shape
    if [n for n in source if n != 1] == [n for n in shape if n != 1]:
        return reader.add(eqn, lambda out: ReshapeNode((x,), out))
    before = next((n for n in reader.nodes if n.output == x), None)
    if not isinstance(before, _Blown) or len(shape) != 4:
        return None
    return _upsampling(reader, eqn, before, source, shape)


def _upsampling(
    reader: _Reader, eqn: Any, blown: _Blown, wide: tuple[int, ...], shape: tuple[int, ...]
) -> Ref | None:
    """(B, H, W, C) or (B, H, 1, W, 1, C) -> (B, H, f, W, f, C) -> (B, f H, f W, C)."""
    small = reader.avals[blown.inputs[0]].shape
    if len(wide) != 6 or wide[0] != shape[0] or wide[5] != shape[3]:
        return None
    factor = wide[2]
    if wide[4] != factor or shape[1:3] != (wide[1] * factor, wide[3] * factor):
        return None
    source = blown.inputs[0]
    kept = {d: small[i] for i, d in enumerate(blown.eqn.params["broadcast_dimensions"])}
    inserted, copied = (2, 4), (0, 1, 3, 5)
    if any(kept.get(d, 1) != 1 for d in inserted) or any(kept.get(d) != wide[d] for d in copied):
        return None
    if len(small) == 6:
        inner = next((n for n in reader.nodes if n.output == source), None)
        if not isinstance(inner, ReshapeNode) or len(reader.avals[inner.inputs[0]].shape) != 4:
            return None
        source = inner.inputs[0]
    return reader.add(eqn, lambda out: UpsampleNode((source,), out, factor))


def _pool(reader: _Reader, eqn: Any, values: list[Any]) -> Ref | None:
    (x,) = values[:1]
    p = eqn.params
    window, strides, padding = p["window_dimensions"], p["window_strides"], p["padding"]
    if (
        len(window) != 4
        or window[0] != 1
        or window[3] != 1
        or any(d != 1 for d in p["base_dilation"])
    ):
        return None
    if (
        any(d != 1 for d in p["window_dilation"])
        or tuple(padding[0]) + tuple(padding[3]) != (0,) * 4
    ):
        return None
    fn = "max" if eqn.primitive.name == "reduce_window_max" else "sum"
    pads = tuple((int(lo), int(hi)) for lo, hi in padding[1:3])
    return reader.add(
        eqn, lambda out: PoolNode((x,), out, fn, tuple(window[1:3]), tuple(strides[1:3]), pads)
    )


def _reduce_sum(reader: _Reader, eqn: Any, values: list[Any]) -> Ref | None:
    (x,) = values
    if len(reader.avals[x].shape) != 4 or tuple(eqn.params["axes"]) != (1, 2):
        return None
    return reader.add(eqn, lambda out: SpatialSumNode((x,), out))


def _concatenate(reader: _Reader, eqn: Any, values: list[Any]) -> Ref | None:
    rank = len(eqn.outvars[0].aval.shape)
    if any(isinstance(v, _Known) for v in values) or eqn.params["dimension"] != rank - 1:
        return None
    return reader.add(eqn, lambda out: ConcatNode(tuple(values), out))


_RULES: dict[str, Callable[[_Reader, Any, list[Any]], Ref | None]] = {
    "conv_general_dilated": _conv,
    **dict.fromkeys(("add", "add_any", "sub", "mul", "div", "max"), _arithmetic),
    "min": _min,
    "clamp": _clamp,
    **dict.fromkeys(("neg", "logistic", "tanh", "exp", "abs", "sqrt", "rsqrt"), _unary),
    "integer_pow": _unary,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    **dict.fromkeys(("reduce_window_max", "reduce_window_sum"), _pool),
    "reduce_sum": _reduce_sum,
    "concatenate": _concatenate,
}


def _drop_unused(graph: Graph) -> None:
    """Removes nodes whose tensors nobody reads."""
    while True:
        uses = graph.uses()
        kept = [n for n in graph.nodes if any(uses[r] for r in _made_by(n))]
        if len(kept) == len(graph.nodes):
            return
        graph.nodes = kept


def _made_by(node: Node) -> tuple[Ref, ...]:
    return node.outputs if isinstance(node, OtherNode) else (node.output,)


class _Index:
    """Who makes a tensor, and whether only one node reads it."""

    def __init__(self, graph: Graph) -> None:
        self._makers = {r: n for n in graph.nodes for r in _made_by(n)}
        self._uses = graph.uses()

    def sole(self, ref: Ref, kind: type[Node] | tuple[type[Node], ...]) -> Any:
        """The maker of a tensor, if it is of this kind and has one reader."""
        maker = self._makers.get(ref)
        return maker if isinstance(maker, kind) and self._uses[ref] == 1 else None


def _rewrite(graph: Graph, change: Callable[[Node, _Index], Node | None]) -> None:
    """Replaces nodes in place, one at a time, until `change` finds no more."""
    at = 0
    index = _Index(graph)
    while at < len(graph.nodes):
        new = change(graph.nodes[at], index)
        if new is None:
            at += 1
            continue
        graph.nodes[at] = new
        # What was merged into the new node makes the same tensor, or one nobody reads now.
        graph.nodes[:at] = [n for n in graph.nodes[:at] if n is not new and n.output != new.output]
        _drop_unused(graph)
        at, index = graph.nodes.index(new), _Index(graph)


def _swish(graph: Graph) -> None:
    """x * logistic(x)."""

    def change(node: Node, index: _Index) -> Node | None:
        if not isinstance(node, BinaryNode) or node.fn != "mul":
            return None
        for x, gate in (node.inputs, node.inputs[::-1]):
            maker = index.sole(gate, UnaryNode)
            if maker and maker.fn == "logistic" and maker.inputs == (x,):
                return UnaryNode((x,), node.output, "swish")
        return None

    _rewrite(graph, change)


def _compose_affine(graph: Graph) -> None:
    """Two affine maps in a row are one."""

    def change(node: Node, index: _Index) -> Node | None:
        if not isinstance(node, AffineNode):
            return None
        inner = index.sole(node.inputs[0], AffineNode)
        if inner is None:
            return None
        scale, shift = node.scale * inner.scale, node.scale * inner.shift + node.shift
        return AffineNode(inner.inputs, node.output, scale, shift)

    _rewrite(graph, change)


def _fold_affine(graph: Graph) -> None:
    """A convolution takes the affine map of its output into kernel and bias."""

    def change(node: Node, index: _Index) -> Node | None:
        if not isinstance(node, AffineNode):
            return None
        conv = index.sole(node.inputs[0], ConvNode)
        if conv is None:
            return None
        channels = (conv.conv.out_channels,)
        scale = np.broadcast_to(node.scale, channels)
        bias = np.broadcast_to(node.shift, channels)
        if conv.bias is not None:
            bias = conv.bias * scale + bias
        before = 1 if conv.scale is None else conv.scale
        return dataclasses.replace(
            conv, output=node.output, kernel=conv.kernel * scale, bias=bias, scale=before * scale
        )

    _rewrite(graph, change)


def _sums(graph: Graph) -> None:
    """Trees of additions become one sum, upsampling of its inputs included."""

    def change(node: Node, index: _Index) -> Node | None:
        if isinstance(node, BinaryNode) and node.fn == "add":
            left, right = (graph.avals[r].shape for r in node.inputs)
            return SumNode(node.inputs, node.output, (1, 1)) if left == right else None
        if not isinstance(node, SumNode):
            return None
        for i, (ref, factor) in enumerate(zip(node.inputs, node.factors, strict=True)):
            inner = index.sole(ref, (SumNode, UpsampleNode))
            if inner is None or factor != 1:
                continue
            factors = (inner.factor,) if isinstance(inner, UpsampleNode) else inner.factors
            return SumNode(
                (*node.inputs[:i], *inner.inputs, *node.inputs[i + 1 :]),
                node.output,
                (*node.factors[:i], *factors, *node.factors[i + 1 :]),
            )
        return None

    _rewrite(graph, change)


def _activations(graph: Graph) -> None:
    """Convolutions and sums take the activation that follows them."""

    def change(node: Node, index: _Index) -> Node | None:
        if not isinstance(node, UnaryNode) or node.fn not in ACTIVATIONS:
            return None
        before = index.sole(node.inputs[0], (ConvNode, SumNode))
        if before is None or before.act != "none":
            return None
        return dataclasses.replace(before, output=node.output, act=node.fn)

    _rewrite(graph, change)


def _residuals(graph: Graph) -> None:
    """The later of two summed convolutions takes the other input as its residual."""

    def change(node: Node, index: _Index) -> Node | None:
        if not isinstance(node, SumNode) or node.factors != (1, 1):
            return None
        makers = [(index.sole(r, ConvNode), r) for r in node.inputs]
        free = [
            (graph.nodes.index(conv), i)
            for i, (conv, _) in enumerate(makers)
            if conv is not None and conv.act == "none" and conv.residual is None
        ]
        if not free or node.inputs[0] == node.inputs[1]:
            return None
        i = max(free)[1]
        conv, other = makers[i][0], node.inputs[1 - i]
        return dataclasses.replace(
            conv,
            inputs=(*conv.inputs, other),
            output=node.output,
            residual=other,
            act=node.act,
        )

    _rewrite(graph, change)


_REWRITES = (_swish, _compose_affine, _fold_affine, _sums, _activations, _residuals)
