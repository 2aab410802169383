"""What works element by element: arithmetic, functions of one number, comparisons."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.reader import Known, Reader, Rule
from skipconv_jax.program.fold.views import (
    Ref,
    View,
    indices,
    laid,
)

_ZERO, _ONE = np.zeros((), np.float32), np.ones((), np.float32)


def _same(x: View, y: View) -> bool:
    return (x.dims, x.offsets) == (y.dims, y.offsets)


def per_channel(reader: Reader, known: Known, x: View) -> np.ndarray | None:
    """`()` or `(C,)` where a constant varies along the channels of x's tensor alone, else None."""
    array = known.array
    if array.size and (array.ndim == 0 or (array == array[(0,) * array.ndim]).all()):
        return np.asarray(array.flat[0])
    if array.ndim != len(x.dims):
        return None
    stored = reader.shape(x.ref)
    last = len(stored) - 1
    atoms, index = [], []
    for n, step, dim in zip(array.shape, array.strides, x.dims, strict=True):
        varies = n != 1 and step != 0 and bool(dim) and all(a.axis == last for a in dim)
        atoms += list(dim) if varies else []
        index.append(slice(None) if varies else slice(0, 1))
    part = array[tuple(index)]
    if not (np.broadcast_to(part, array.shape) == array).all():
        return None
    places = indices(atoms, {last: 1}, x.offsets[last])
    if sorted(places) != list(range(stored[last])):
        return None
    values = np.empty(stored[last], array.dtype)
    values[places] = part.ravel()
    return values


def _arithmetic(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    name = {"add_any": "add"}.get(eqn.primitive.name, eqn.primitive.name)
    left, right = values
    if eqn.outvars[0].aval.dtype != np.float32:
        return None
    if not isinstance(left, Known) and not isinstance(right, Known):
        made = _binary(reader, name, left, right)
    else:
        made = _with_constant(reader, name, left, right)
    if made is not None:
        reader.sample(eqn, values, made.ref)
    return made


def _binary(reader: Reader, name: str, left: View, right: View) -> View | None:
    if reader.shape(left.ref) == reader.shape(right.ref) and _same(left, right):
        shape = reader.shape(left.ref)
        return left.on(reader.make(lambda o: g.BinaryNode((left.ref, right.ref), o, name), shape))
    if len(left.dims) == len(right.dims) == 2:
        # Vectors `(B, C)` as maps of one position.
        made = _binary(reader, name, left.as_position(), right.as_position())
        return None if made is None else dataclasses.replace(made, dims=made.dims[::3])
    if len(left.dims) != 4 or len(right.dims) != 4:
        return None
    roles = reader.roles(left, right)
    refs = [_one_position(reader, v, roles) or reader.map(v, roles) for v in (left, right)]
    shape = tuple(max(n) for n in zip(*(reader.shape(r) for r in refs), strict=True))
    if shape != tuple(left.shape[i] for i in roles):
        # Both repeat: written out after all.
        refs = [reader.map(v, roles) for v in (left, right)]
        shape = reader.shape(refs[0])
    ref = reader.make(lambda o: g.BinaryNode((refs[0], refs[1]), o, name), shape)
    return laid(ref, shape, roles)


def _one_position(reader: Reader, view: View, roles: Sequence[int]) -> Ref | None:
    """What a view repeats over all positions, or over all channels, as a map of its own."""
    batch, rows, cols, channels = (view.dims[i] for i in roles)
    repeats = [all(a.axis is None for a in dim) for dim in (rows, cols, channels)]
    if not (repeats[0] and repeats[1] and (rows or cols)) and not (repeats[2] and channels):
        return None
    spatial = repeats[0] and repeats[1]
    small = [
        batch,
        () if spatial else rows,
        () if spatial else cols,
        () if repeats[2] else channels,
    ]
    return reader.map(View(view.ref, tuple(small), view.offsets), (0, 1, 2, 3))


def _with_constant(reader: Reader, name: str, left: Any, right: Any) -> View | None:
    x, known, flipped = (right, left, True) if isinstance(left, Known) else (left, right, False)
    constant = per_channel(reader, known, x)
    if constant is None:
        return _mean_valid(reader, x, known) if name == "div" and not flipped else None
    shape = reader.shape(x.ref)
    node: Callable[[Ref], g.Node] | None = None
    affine: tuple[np.ndarray, np.ndarray] | None = None
    if name == "add":
        affine = _ONE, constant
    elif name == "sub":
        affine = (-_ONE, constant) if flipped else (_ONE, -constant)
    elif name == "mul":
        affine = constant, _ZERO
    elif name == "div" and not flipped:
        affine = _ONE / constant, _ZERO
    if affine is not None:
        scale, shift = (np.asarray(a, np.float32) for a in affine)
        node = lambda o: g.AffineNode((x.ref,), o, scale, shift)  # noqa: E731
    elif name in ("max", "min") and constant.ndim == 0:
        low, high = (constant, np.inf) if name == "max" else (-np.inf, constant)
        bounds = float(low), float(high)
        clamp = ("relu", ()) if bounds == (0.0, np.inf) else ("clip", bounds)
        node = lambda o: g.UnaryNode((x.ref,), o, clamp[0], params=clamp[1])  # noqa: E731
    elif name == "div" and constant.ndim == 0:
        # c / x has no node; its values tell if it is part of a known function (1 / (1 + e^-x)).
        numerator = reader.make(
            lambda o: g.AffineNode((x.ref,), o, _ZERO, np.asarray(constant, np.float32)), shape
        )
        node = lambda o: g.BinaryNode((numerator, x.ref), o, "div")  # noqa: E731
    return None if node is None else x.on(reader.make(node, shape))


def _mean_valid(reader: Reader, x: View, known: Known) -> View | None:
    """A sum over windows divided by how many positions lie inside the map."""
    pool = reader.maker(x.ref)
    if not isinstance(pool, g.PoolNode) or pool.fn != "sum" or len(x.dims) != 4:
        return None
    size = reader.shape(pool.inputs[0])[1:3]
    counts = [
        np.array([sum(0 <= i * s - lo + j < n for j in range(k)) for i in range(out)])
        for n, k, s, (lo, _), out in zip(
            size, pool.window, pool.strides, pool.padding, reader.shape(x.ref)[1:3], strict=True
        )
    ]
    roles = reader.roles(x)
    given = np.broadcast_to(known.array, x.shape).transpose(roles)
    if not (given == (counts[0][:, None] * counts[1][None, :])[None, :, :, None]).all():
        return None
    node = g.PoolNode(pool.inputs, -1, "mean_valid", pool.window, pool.strides, pool.padding)

    def make(out: Ref) -> g.Node:
        node.output = out
        return node

    return x.on(reader.make(make, reader.shape(x.ref)))


def _unary(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    (x,) = values
    name = eqn.primitive.name
    if eqn.outvars[0].aval.dtype != np.float32:
        return None
    shape = reader.shape(x.ref)
    if name == "neg":
        ref = reader.make(lambda o: g.AffineNode((x.ref,), o, -_ONE, _ZERO), shape)
    elif name in _PARTS:
        # No operation of the engine, but part of some: recognised by their values.
        ref = reader.make(lambda o: g.UnaryNode((x.ref,), o, name), shape)
    else:
        power = eqn.params.get("y", 1)
        ref = reader.make(lambda o: g.UnaryNode((x.ref,), o, name, power), shape)
    reader.sample(eqn, values, ref)
    return x.on(ref)


_PARTS = ("expm1", "log1p", "erfc", "sign")


def _clamp(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    low, x, high = values
    if isinstance(x, Known) or not isinstance(low, Known) or not isinstance(high, Known):
        return None
    if low.array.size != 1 or high.array.size != 1 or eqn.outvars[0].aval.dtype != np.float32:
        return None
    bounds = float(low.array.item()), float(high.array.item())
    ref = reader.make(
        lambda o: g.UnaryNode((x.ref,), o, "clip", params=bounds), reader.shape(x.ref)
    )
    reader.sample(eqn, values, ref)
    return x.on(ref)


def _compare(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    """With a scalar; both orders."""
    left, right = values
    name = eqn.primitive.name
    if name == "ne":
        return _is_nan(reader, eqn, values)
    if isinstance(left, Known):
        left, right, name = right, left, {"gt": "lt", "ge": "le", "lt": "gt", "le": "ge"}[name]
    if isinstance(left, Known) or not isinstance(right, Known):
        return None
    value = per_channel(reader, right, left)
    if value is None or value.ndim or reader.avals[left.ref].dtype != np.float32:
        return None
    shape = reader.shape(left.ref)
    scalar = float(value)
    ref = reader.make(lambda o: g.CompareNode((left.ref,), o, name, scalar), shape, np.bool_)
    reader.sample(eqn, values, ref)
    return left.on(ref)


def _is_nan(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    """x != x."""
    left, right = values
    if isinstance(left, Known) or left != right or reader.avals[left.ref].dtype != np.float32:
        return None
    shape = reader.shape(left.ref)
    ref = reader.make(lambda o: g.CompareNode((left.ref,), o, "ne", 0.0), shape, np.bool_)
    reader.sample(eqn, values, ref)
    return left.on(ref)


def _select(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    """`where(x > 0, ...)`: part of a known function, or PReLU."""
    views = [v for v in values if not isinstance(v, Known)]
    if isinstance(values[0], Known) or len(values) != 3:
        return None
    if eqn.outvars[0].aval.dtype != np.float32 or not all(_same(v, views[0]) for v in views):
        return None
    shape = reader.shape(views[0].ref)
    made = _prelu(reader, values)
    if made is not None:
        return views[0].on(reader.make(made, shape))
    number = len(reader.avals)
    reader.sample(eqn, values, number)
    refs = tuple(dict.fromkeys(v.ref for v in views))
    operands = tuple(v.array.flat[0] if isinstance(v, Known) else v.ref for v in values)
    if number not in reader.samples:
        return None
    return views[0].on(reader.make(lambda o: g.SelectNode(refs, o, operands), shape))


def _prelu(reader: Reader, values: Sequence[Any]) -> Callable[[Ref], g.Node] | None:
    condition = reader.maker(values[0].ref)
    if not isinstance(condition, g.CompareNode) or condition.value != 0:
        return None
    x = condition.inputs[0]
    negative, positive = values[1:] if condition.fn in ("gt", "ge") else values[:0:-1]
    if isinstance(negative, Known) or isinstance(positive, Known) or positive.ref != x:
        return None
    line = reader.maker(negative.ref)
    if not isinstance(line, g.AffineNode) or line.inputs != (x,) or np.any(line.shift):
        return None
    if line.scale.ndim == 0:
        slope = (float(line.scale),)
        return lambda o: g.UnaryNode((x,), o, "leaky_relu", params=slope)
    scale = line.scale
    return lambda o: g.PReluNode((x,), o, scale)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("add", "add_any", "sub", "mul", "div", "max", "min"), _arithmetic),
    "clamp": _clamp,
    **dict.fromkeys(
        ("neg", "logistic", "tanh", "exp", "abs", "sqrt", "rsqrt", "erf", "log", "square"), _unary
    ),
    **dict.fromkeys(_PARTS, _unary),
    "integer_pow": _unary,
    **dict.fromkeys(("gt", "ge", "lt", "le", "ne"), _compare),
    "select_n": _select,
}
