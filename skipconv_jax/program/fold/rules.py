"""What each primitive becomes: one function per family, `(reader, equation, operands) -> view`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops.geometry import Conv
from skipconv_jax.program.fold.nodes import (
    AffineNode,
    BinaryNode,
    ChannelsNode,
    CompareNode,
    ConcatNode,
    ConvNode,
    CropNode,
    DepthToSpaceNode,
    FlattenNode,
    Node,
    PadNode,
    PoolNode,
    PReluNode,
    ReduceNode,
    ResizeNode,
    SelectNode,
    SpatialMaxNode,
    SpatialSumNode,
    UnaryNode,
)
from skipconv_jax.program.fold.reader import Known, Reader, Rule
from skipconv_jax.program.fold.views import (
    Ref,
    View,
    broadcast,
    indices,
    is_whole,
    reshape,
    slice_axis,
    whole,
)
from skipconv_jax.program.jaxprs import CONV, channels_last, window_first

_ZERO, _ONE = np.zeros((), np.float32), np.ones((), np.float32)


# -- convolutions ----------------------------------------------------------------------------------
def _conv(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    x, kernel = values
    params, out = eqn.params, eqn.outvars[0].aval
    numbers = params["dimension_numbers"]
    if isinstance(x, Known) or not isinstance(kernel, Known) or params["batch_group_count"] != 1:
        return None
    if out.dtype != jnp.float32 or len(out.shape) != 4:
        return None
    ref = reader.map(x, channels_last(numbers.lhs_spec))
    weights = np.transpose(kernel.array, window_first(numbers.rhs_spec))
    options = {
        "strides": params["window_strides"],
        "dilation": params["rhs_dilation"],
        "groups": params["feature_group_count"],
        "precision": params["precision"],
    }
    order = channels_last(numbers.out_spec)
    shape = tuple(out.shape[i] for i in order)
    if math.prod(params["lhs_dilation"]) != 1:
        made = _transposed(reader, params, ref, weights, shape)
        if made is None:
            return None
        ref = made
    else:
        conv = Conv.make(reader.shape(ref), weights.shape, padding=params["padding"], **options)
        ref = reader.make(lambda o: _conv_node(reader, ref, o, conv, weights), shape)
    return whole(ref, shape, [order.index(i) for i in range(4)])


def _conv_node(reader: Reader, x: Ref, out: Ref, conv: Conv, weights: np.ndarray) -> ConvNode:
    size = np.abs(weights)
    means = float(size.mean()), float(size.sum())
    return ConvNode((x,), out, reader.site.name, conv, weights, None, *means)


def _phases(
    n: int, k: int, out: int, stride: int, low: int, dilation: int
) -> tuple[list[list[tuple[int, int]]], int, tuple[int, int]]:
    """Per phase of the output (tap of its kernel, tap of the kernel); their number; padding."""
    offsets = [
        [
            ((p - low + j * dilation) // stride, j)
            for j in range(k)
            if (p - low + j * dilation) % stride == 0
        ]
        for p in range(stride)
    ]
    first = min((t for phase in offsets for t, _ in phase), default=0)
    last = max((t for phase in offsets for t, _ in phase), default=0)
    size = -(-out // stride)
    high = size - 1 + last - (n - 1)
    taps = [[(t - first, j) for t, j in phase] for phase in offsets]
    return taps, last - first + 1, (-first, high)


def _transposed(
    reader: Reader, params: Any, x: Ref, weights: np.ndarray, shape: tuple[int, ...]
) -> Ref | None:
    """A transposed convolution: every phase of the output is a convolution of its own, all of them
    output channels of one, which become positions after it."""
    stride = params["lhs_dilation"][0]
    if set(params["lhs_dilation"]) != {stride} or set(params["window_strides"]) != {1}:
        return None
    if params["feature_group_count"] != 1:
        return None
    b, h, w, ci = reader.shape(x)
    kh, kw, _, co = weights.shape
    axes = [
        _phases(n, k, out, stride, pads[0], dilation)
        for n, k, out, pads, dilation in zip(
            (h, w), (kh, kw), shape[1:3], params["padding"], params["rhs_dilation"], strict=True
        )
    ]
    (rows, th, pad_h), (cols, tw, pad_w) = axes
    if min(*pad_h, *pad_w) < 0:
        return None
    kernel = np.zeros((th, tw, ci, stride, stride, co), np.float32)
    for py, row in enumerate(rows):
        for px, col in enumerate(cols):
            for ty, jy in row:
                for tx, jx in col:
                    kernel[ty, tx, :, py, px] = weights[jy, jx]
    kernel = kernel.reshape(th, tw, ci, stride * stride * co)
    conv = Conv.make((b, h, w, ci), kernel.shape, padding=(pad_h, pad_w))
    small = (b, *conv.out_spatial, kernel.shape[3])
    deep = reader.make(lambda o: _conv_node(reader, x, o, conv, kernel), small)
    big = (b, small[1] * stride, small[2] * stride, co)
    ref = reader.make(lambda o: DepthToSpaceNode((deep,), o, stride), big)
    if big == shape:
        return ref
    sizes = (shape[1], shape[2])
    return reader.make(lambda o: CropNode((ref,), o, (0, 0), sizes, (1, 1)), shape)


# -- element by element ----------------------------------------------------------------------------
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
        return left.on(reader.make(lambda o: BinaryNode((left.ref, right.ref), o, name), shape))
    if len(left.dims) != 4:
        return None
    roles = reader.roles(left, right)
    refs = [_one_position(reader, v, roles) or reader.map(v, roles) for v in (left, right)]
    shape = tuple(max(n) for n in zip(*(reader.shape(r) for r in refs), strict=True))
    if shape != tuple(left.shape[i] for i in roles):
        # Both repeat: written out after all.
        refs = [reader.map(v, roles) for v in (left, right)]
        shape = reader.shape(refs[0])
    ref = reader.make(lambda o: BinaryNode((refs[0], refs[1]), o, name), shape)
    return whole(ref, shape, [list(roles).index(i) for i in range(4)])


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
    node: Callable[[Ref], Node] | None = None
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
        node = lambda o: AffineNode((x.ref,), o, scale, shift)  # noqa: E731
    elif name in ("max", "min") and constant.ndim == 0:
        low, high = (constant, np.inf) if name == "max" else (-np.inf, constant)
        bounds = float(low), float(high)
        clamp = ("relu", ()) if bounds == (0.0, np.inf) else ("clip", bounds)
        node = lambda o: UnaryNode((x.ref,), o, clamp[0], params=clamp[1])  # noqa: E731
    elif name == "div" and constant.ndim == 0:
        # c / x has no node; its values tell if it is part of a known function (1 / (1 + e^-x)).
        numerator = reader.make(
            lambda o: AffineNode((x.ref,), o, _ZERO, np.asarray(constant, np.float32)), shape
        )
        node = lambda o: BinaryNode((numerator, x.ref), o, "div")  # noqa: E731
    return None if node is None else x.on(reader.make(node, shape))


def _mean_valid(reader: Reader, x: View, known: Known) -> View | None:
    """A sum over windows divided by how many positions lie inside the map."""
    pool = reader.maker(x.ref)
    if not isinstance(pool, PoolNode) or pool.fn != "sum" or len(x.dims) != 4:
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
    node = PoolNode(pool.inputs, -1, "mean_valid", pool.window, pool.strides, pool.padding)

    def make(out: Ref) -> Node:
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
        ref = reader.make(lambda o: AffineNode((x.ref,), o, -_ONE, _ZERO), shape)
    elif name in _PARTS:
        # No operation of the engine, but part of some: recognised by their values.
        ref = reader.make(lambda o: UnaryNode((x.ref,), o, name), shape)
    else:
        power = eqn.params.get("y", 1)
        ref = reader.make(lambda o: UnaryNode((x.ref,), o, name, power), shape)
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
    ref = reader.make(lambda o: UnaryNode((x.ref,), o, "clip", params=bounds), reader.shape(x.ref))
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
    ref = reader.make(lambda o: CompareNode((left.ref,), o, name, scalar), shape, np.bool_)
    reader.sample(eqn, values, ref)
    return left.on(ref)


def _is_nan(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    """x != x."""
    left, right = values
    if isinstance(left, Known) or left != right or reader.avals[left.ref].dtype != np.float32:
        return None
    shape = reader.shape(left.ref)
    ref = reader.make(lambda o: CompareNode((left.ref,), o, "ne", 0.0), shape, np.bool_)
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
    return views[0].on(reader.make(lambda o: SelectNode(refs, o, operands), shape))


def _prelu(reader: Reader, values: Sequence[Any]) -> Callable[[Ref], Node] | None:
    condition = reader.maker(values[0].ref)
    if not isinstance(condition, CompareNode) or condition.value != 0:
        return None
    x = condition.inputs[0]
    negative, positive = values[1:] if condition.fn in ("gt", "ge") else values[:0:-1]
    if isinstance(negative, Known) or isinstance(positive, Known) or positive.ref != x:
        return None
    line = reader.maker(negative.ref)
    if not isinstance(line, AffineNode) or line.inputs != (x,) or np.any(line.shift):
        return None
    if line.scale.ndim == 0:
        slope = (float(line.scale),)
        return lambda o: UnaryNode((x,), o, "leaky_relu", params=slope)
    scale = line.scale
    return lambda o: PReluNode((x,), o, scale)


# -- shapes ----------------------------------------------------------------------------------------
def _broadcast(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    if len(values) != 1:
        return None
    return broadcast(values[0], eqn.params["shape"], eqn.params["broadcast_dimensions"])


def _reshape(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    return None if len(values) != 1 else reshape(values[0], eqn.outvars[0].aval.shape)


def _transpose(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    return values[0].transpose(eqn.params["permutation"])


def _identity(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    """`copy`, and conversions to the same type."""
    same = eqn.outvars[0].aval.dtype == reader.avals[values[0].ref].dtype
    return values[0] if same else None


def _slice(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    view, p = values[0], eqn.params
    strides = p["strides"] or (1,) * len(view.dims)
    cut = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return _cut(
        reader, view, [(start, -(-(stop - start) // step), step) for start, stop, step in cut]
    )


def _cut(reader: Reader, view: View, cuts: Sequence[tuple[int, int, int]]) -> View | None:
    cut: View | None = view
    for axis, (start, size, step) in enumerate(cuts):
        cut = None if cut is None else slice_axis(cut, axis, start, size, step)
    if cut is not None or len(view.dims) != 4:
        return cut
    # An axis that was put together: written out, then cut.
    roles = reader.roles(view)
    ref = reader.map(view, roles)
    fresh = whole(ref, reader.shape(ref), [list(roles).index(i) for i in range(4)])
    for axis, (start, size, step) in enumerate(cuts):
        made = slice_axis(fresh, axis, start, size, step)
        if made is None:
            return None
        fresh = made
    return fresh


def _gather(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    """Constant indices along one axis: `x[:, [2, 0, 1]]`, `jnp.take`, `x[:, 1]`."""
    x, start = values
    p = eqn.params
    numbers = p["dimension_numbers"]
    if isinstance(x, Known) or not isinstance(start, Known) or len(numbers.start_index_map) != 1:
        return None
    (axis,) = numbers.start_index_map
    sizes, index = list(p["slice_sizes"]), start.array[..., 0]
    full = all(n == m for i, (n, m) in enumerate(zip(sizes, x.shape, strict=True)) if i != axis)
    if getattr(numbers, "operand_batching_dims", ()) or not full:
        return None
    limit = x.shape[axis] - sizes[axis]
    if index.size == 0 or index.min() < -x.shape[axis] or index.max() > limit:
        return None
    if index.ndim == 0:
        cut = [(0, n, 1) for n in x.shape]
        cut[axis] = (int(index), sizes[axis], 1)
        view = _cut(reader, x, cut)
        if view is None or axis not in numbers.collapsed_slice_dims:
            return view
        return reshape(view, eqn.outvars[0].aval.shape)
    if index.ndim != 1 or sizes[axis] != 1 or numbers.collapsed_slice_dims != (axis,):
        return None
    kept = [i for i in range(len(x.dims)) if i != axis]
    places = [i for i in range(len(x.dims)) if i not in numbers.offset_dims]
    picked = _pick(reader, x, axis, index)
    if picked is None or len(places) != 1:
        return None
    order = list(kept)
    order.insert(places[0], axis)
    return picked.transpose(order)


def _pick(reader: Reader, x: View, axis: int, index: np.ndarray) -> View | None:
    """Elements `index` of one axis, which is one of a map's."""
    steps = np.diff(index)
    if len(index) == 1 or ((steps == steps[0]).all() and steps[0] > 0):
        cut = [(0, n, 1) for n in x.shape]
        cut[axis] = (int(index[0]), len(index), int(steps[0]) if len(index) > 1 else 1)
        return _cut(reader, x, cut)
    if len(x.dims) != 4:
        return None
    roles = reader.roles(x)
    ref = reader.map(x, roles)
    at = list(roles).index(axis)
    shape = list(reader.shape(ref))
    shape[at] = len(index)
    if at == 3:
        picked = tuple(int(i) for i in index)
        made = reader.make(lambda o: ChannelsNode((ref,), o, picked), shape)
    elif at in (1, 2):
        made = reader.make(
            lambda o: ResizeNode((ref,), o, _taps(reader.shape(ref), at, index)), shape
        )
    else:
        return None
    return whole(made, shape, [list(roles).index(i) for i in range(4)])


def _taps(
    shape: tuple[int, ...], at: int, index: np.ndarray, weight: np.ndarray | None = None
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Of a resampling of one spatial axis."""
    table = index.reshape(len(index), -1).astype(np.int64)
    weights = np.ones(table.shape, np.float32) if weight is None else weight.astype(np.float32)
    rest = [np.arange(shape[i])[:, None] for i in (1, 2)]
    made = [(r, np.ones(r.shape, np.float32)) for r in rest]
    made[at - 1] = (table, weights)
    return tuple(made)


def _dot(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    """A constant matrix along a spatial axis: resampling, as `jax.image.resize` writes it."""
    ((left, right), batch) = eqn.params["dimension_numbers"]
    if batch != ((), ()) or len(left) != 1 or eqn.outvars[0].aval.dtype != np.float32:
        return None
    x, matrix = values
    flipped = isinstance(x, Known)
    axis, inner = (right[0], left[0]) if flipped else (left[0], right[0])
    x, matrix = (matrix, x) if flipped else (x, matrix)
    if isinstance(x, Known) or not isinstance(matrix, Known) or matrix.array.ndim != 2:
        return None
    if len(x.dims) != 4:
        return None
    roles = reader.roles(x)
    ref, at = reader.map(x, roles), list(roles).index(axis)
    if at not in (1, 2):
        return None
    weights = matrix.array if inner == 1 else matrix.array.T  # (out, in)
    taps = int((weights != 0).sum(1).max())
    if taps > 16:
        return None
    index = np.argsort(weights == 0, axis=1, kind="stable")[:, :taps]
    shape = list(reader.shape(ref))
    shape[at] = len(weights)
    table = _taps(reader.shape(ref), at, index, np.take_along_axis(weights, index, 1))
    made = reader.make(lambda o: ResizeNode((ref,), o, table), shape)
    # The resampled axis comes last, or first where the matrix was on the left.
    current = whole(made, shape, [list(roles).index(i) for i in range(4)])
    free = [i for i in range(4) if i != axis]
    return current.transpose([axis, *free] if flipped else [*free, axis])


def _pad(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    x, value = values
    if isinstance(x, Known) or not isinstance(value, Known) or len(x.dims) != 4:
        return None
    config = eqn.params["padding_config"]
    if any(inner for _, _, inner in config) or any(min(lo, hi) < 0 for lo, hi, _ in config):
        return None
    if reader.avals[x.ref].dtype != np.float32:
        return None
    roles = reader.roles(x)
    pads = [config[i][:2] for i in roles]
    if pads[0] != (0, 0) or pads[3] != (0, 0):
        return None
    ref = reader.map(x, roles)
    shape = [n + sum(p) for n, p in zip(reader.shape(ref), pads, strict=True)]
    border = float(value.array)
    made = reader.make(lambda o: PadNode((ref,), o, (pads[1], pads[2]), border), shape)
    return whole(made, shape, [list(roles).index(i) for i in range(4)])


# -- over space and channels -----------------------------------------------------------------------
def _pool(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    x, p = values[0], eqn.params
    if len(x.dims) != 4 or eqn.outvars[0].aval.dtype != np.float32:
        return None
    roles = reader.roles(x)
    window, strides, padding, base, dilation = (
        [tuple(p[name][i]) if name == "padding" else p[name][i] for i in roles]
        for name in (
            "window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation",
        )
    )  # fmt: skip
    outer = [window[0], window[3], strides[0], strides[3], *base, *dilation]
    if set(outer) != {1} or (padding[0], padding[3]) != ((0, 0), (0, 0)):
        return None
    if any(lo < 0 or hi < 0 for lo, hi in padding[1:3]):
        return None
    fn = "max" if eqn.primitive.name == "reduce_window_max" else "sum"
    pads = tuple((int(lo), int(hi)) for lo, hi in padding[1:3])
    (kh, kw), (sh, sw) = map(_pair, (window[1:3], strides[1:3]))
    ref = reader.map(x, roles)
    shape = [eqn.outvars[0].aval.shape[i] for i in roles]
    made = reader.make(lambda o: PoolNode((ref,), o, fn, (kh, kw), (sh, sw), pads), shape)
    return whole(made, shape, [list(roles).index(i) for i in range(4)])


def _pair(values: Sequence[Any]) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def _reduce(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    """Over all positions `(B, C)`, or over all channels."""
    (x,), axes = values[:1], set(eqn.params["axes"])
    if len(x.dims) not in (3, 4) or eqn.outvars[0].aval.dtype != np.float32:
        return None
    stored = reader.shape(x.ref)
    if len(stored) != 4:
        return None
    reduced = {a.axis for i in axes for a in x.dims[i]}
    maximum = eqn.primitive.name == "reduce_max"
    left = [i for i in range(len(x.dims)) if i not in axes]
    if len(x.dims) == 3:
        # Rows and columns as one axis.
        view = reshape(x.transpose([*left, *axes]), (*[x.shape[i] for i in left], *stored[1:3]))
        if view is None or len(axes) != 1 or reduced != {1, 2}:
            return None
        x, axes, left = view, {2, 3}, [0, 1]
    roles = reader.roles(x)
    ref = reader.map(x, roles)
    shape = reader.shape(ref)
    if axes == {roles[1], roles[2]}:
        node = SpatialMaxNode if maximum else SpatialSumNode
        made = reader.make(lambda o: node((ref,), o), (shape[0], shape[3]))
        return whole(made, (shape[0], shape[3]), [0 if i == roles[0] else 1 for i in left])
    if axes == {roles[3]}:
        fn = "max" if maximum else "sum"
        made = reader.make(lambda o: ReduceNode((ref,), o, fn), (*shape[:3], 1))
        kept = whole(made, (*shape[:3], 1))
        return View(made, tuple(kept.dims[list(roles).index(i)] for i in left), kept.offsets)
    return None


def _concatenate(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    axis = eqn.params["dimension"]
    if any(isinstance(v, Known) for v in values) or eqn.outvars[0].aval.dtype != np.float32:
        return None
    flat = _flatten(reader, values, axis)
    if flat is not None or len(values[0].dims) != 4:
        return flat
    roles = reader.roles(*values)
    if roles[3] != axis:
        return None
    pieces = [_channels_of(reader, v, roles) for v in values]
    index, at = [], 0
    for ref, part in pieces:
        index += [at + int(i) for i in part]
        at += reader.shape(ref)[3]
    refs = tuple(ref for ref, _ in pieces)
    shape = (*reader.shape(refs[0])[:3], len(index))
    plain = index == list(range(at))
    made = reader.make(
        lambda o: ConcatNode(refs, o) if plain else ChannelsNode(refs, o, tuple(index)), shape
    )
    return whole(made, shape, [list(roles).index(i) for i in range(4)])


def _channels_of(reader: Reader, view: View, roles: Sequence[int]) -> tuple[Ref, np.ndarray]:
    """A map and which of its channels the view is; written out where it is more than that."""
    shape = reader.shape(view.ref)
    wanted = view.transpose(roles)
    if len(shape) == 4 and not any(view.offsets[:3]):
        full = whole(view.ref, shape)
        channels = wanted.dims[3]
        if wanted.dims[:3] == full.dims[:3] and all(a.axis == 3 for a in channels):
            return view.ref, indices(channels, {3: 1}, view.offsets[3])
    ref = reader.map(view, roles)
    return ref, np.arange(reader.shape(ref)[3])


def _flatten(reader: Reader, values: Sequence[View], axis: int) -> View | None:
    """Maps one behind the other, as detectors' heads return them: `(B, n, k)` in either order."""
    if len(values[0].dims) != 3 or axis == 0:
        return None
    order = (0, axis, 3 - axis)
    for view in values:
        shape = reader.shape(view.ref)
        moved = view.transpose(order)
        line = reshape(moved, shape) if len(shape) == 4 else None
        if line is None or is_whole(line, shape) != (0, 1, 2, 3):
            return None
    refs = tuple(v.ref for v in values)
    first = values[0].shape
    shape = (first[0], sum(v.shape[axis] for v in values), first[3 - axis])
    made = reader.make(lambda o: FlattenNode(refs, o), shape)
    return whole(made, shape, [order.index(i) for i in range(3)])


RULES: dict[str, Rule] = {
    CONV: _conv,
    **dict.fromkeys(("add", "add_any", "sub", "mul", "div", "max", "min"), _arithmetic),
    "clamp": _clamp,
    **dict.fromkeys(
        ("neg", "logistic", "tanh", "exp", "abs", "sqrt", "rsqrt", "erf", "log", "square"), _unary
    ),
    **dict.fromkeys(_PARTS, _unary),
    "integer_pow": _unary,
    **dict.fromkeys(("gt", "ge", "lt", "le", "ne"), _compare),
    "select_n": _select,
    "broadcast_in_dim": _broadcast,
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "transpose": _transpose,
    **dict.fromkeys(("copy", "copy_p", "convert_element_type", "stop_gradient"), _identity),
    "slice": _slice,
    "gather": _gather,
    "dot_general": _dot,
    "pad": _pad,
    **dict.fromkeys(("reduce_window_max", "reduce_window_sum"), _pool),
    **dict.fromkeys(("reduce_sum", "reduce_max"), _reduce),
    "concatenate": _concatenate,
}
