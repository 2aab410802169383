"""Which equations become which nodes; each rule returns None where it doesn't take the case."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from skipconv_jax.program.fold.nodes import (
    AffineNode,
    BinaryNode,
    ConcatNode,
    ConvNode,
    FlattenNode,
    OtherNode,
    PoolNode,
    Ref,
    ReshapeNode,
    SpatialSumNode,
    UnaryNode,
    UpsampleNode,
)
from skipconv_jax.program.fold.reader import Known, Reader, Rule, per_channel
from skipconv_jax.program.jaxprs import CONV, channels_last, window_first
from skipconv_jax.program.sites import geometry


def _conv(reader: Reader, eqn: Any, values: list[Any]) -> Ref | None:
    x, kernel = values
    params = eqn.params
    numbers, shape = params["dimension_numbers"], eqn.invars[0].aval.shape
    rank = len(shape)
    order = tuple(range(rank))
    plain = (
        channels_last(numbers.lhs_spec) == order
        and channels_last(numbers.out_spec) == order
        and window_first(numbers.rhs_spec) == order
    )
    if isinstance(x, Known) or not isinstance(kernel, Known) or not plain:
        return None
    if math.prod(params["lhs_dilation"]) != 1 or params["batch_group_count"] != 1:
        return None
    if eqn.outvars[0].aval.dtype != jnp.float32 or rank != 4:
        return None
    conv = geometry(eqn, shape, kernel.array.shape)
    name, weight = reader.site_name(), np.abs(kernel.array)
    means = float(weight.mean()), float(weight.sum())
    return reader.add(eqn, lambda out: ConvNode((x,), out, name, conv, kernel.array, None, *means))


def _arithmetic(reader: Reader, eqn: Any, values: list[Any]) -> Ref | None:
    name = {"add_any": "add"}.get(eqn.primitive.name, eqn.primitive.name)
    left, right = values
    shape = eqn.outvars[0].aval.shape
    if not isinstance(left, Known) and not isinstance(right, Known):
        return reader.add(eqn, lambda out: BinaryNode((left, right), out, name))
    x, known, flipped = (right, left, True) if isinstance(left, Known) else (left, right, False)
    constant = per_channel(known.array, shape)
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


def _unary(reader: Reader, eqn: Any, values: list[Any]) -> Ref | None:
    (x,) = values
    name = eqn.primitive.name
    if name == "neg":
        minus, zero = -np.ones((), np.float32), np.zeros((), np.float32)
        return reader.add(eqn, lambda out: AffineNode((x,), out, minus, zero))
    power = eqn.params.get("y", 1)
    return reader.add(eqn, lambda out: UnaryNode((x,), out, name, power))


def _clamp(reader: Reader, eqn: Any, values: list[Any]) -> Ref | None:
    low, x, high = values
    if isinstance(x, Known) or not isinstance(low, Known) or not isinstance(high, Known):
        return None
    if low.array.size != 1 or high.array.size != 1:
        return None
    if float(low.array.item()) != 0.0 or float(high.array.item()) != 6.0:
        return None
    return reader.add(eqn, lambda out: UnaryNode((x,), out, "relu6"))


def _min(reader: Reader, eqn: Any, values: list[Any]) -> Ref | None:
    """min(relu(x), 6) is relu6(x)."""
    known = [v for v in values if isinstance(v, Known)]
    if len(known) == 1 and known[0].array.size == 1 and float(known[0].array.item()) == 6.0:
        (x,) = (v for v in values if not isinstance(v, Known))
        before = next((n for n in reader.nodes if n.output == x), None)
        if isinstance(before, UnaryNode) and before.fn == "relu":
            return reader.add(eqn, lambda out: UnaryNode(before.inputs, out, "relu6"))
    return _arithmetic(reader, eqn, values)


def _broadcast(reader: Reader, eqn: Any, values: list[Any]) -> Ref | None:
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


def _reshape(reader: Reader, eqn: Any, values: list[Any]) -> Ref | None:
    (x,) = values[:1]
    source, shape = reader.avals[x].shape, eqn.outvars[0].aval.shape
    if [n for n in source if n != 1] == [n for n in shape if n != 1]:
        return reader.add(eqn, lambda out: ReshapeNode((x,), out))
    if len(source) == 4 and len(shape) == 3 and shape[0] == source[0]:
        return reader.add(eqn, lambda out: FlattenNode((x,), out))
    before = next((n for n in reader.nodes if n.output == x), None)
    if not isinstance(before, _Blown) or len(shape) != 4:
        return None
    return _upsampling(reader, eqn, before, source, shape)


def _upsampling(
    reader: Reader, eqn: Any, blown: _Blown, wide: tuple[int, ...], shape: tuple[int, ...]
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


def _pool(reader: Reader, eqn: Any, values: list[Any]) -> Ref | None:
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


def _reduce_sum(reader: Reader, eqn: Any, values: list[Any]) -> Ref | None:
    (x,) = values
    if len(reader.avals[x].shape) != 4 or tuple(eqn.params["axes"]) != (1, 2):
        return None
    return reader.add(eqn, lambda out: SpatialSumNode((x,), out))


def _concatenate(reader: Reader, eqn: Any, values: list[Any]) -> Ref | None:
    rank, axis = len(eqn.outvars[0].aval.shape), eqn.params["dimension"]
    if any(isinstance(v, Known) for v in values):
        return None
    if (rank, axis) == (3, 1):
        made = {n.output: n for n in reader.nodes}
        maps = [made.get(v) for v in values]
        refs = [r for m in maps if isinstance(m, FlattenNode) for r in m.inputs]
        flat = all(isinstance(m, FlattenNode) for m in maps)
        return reader.add(eqn, lambda out: FlattenNode(tuple(refs), out)) if flat else None
    if axis != rank - 1:
        return None
    return reader.add(eqn, lambda out: ConcatNode(tuple(values), out))


RULES: dict[str, Rule] = {
    CONV: _conv,
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
