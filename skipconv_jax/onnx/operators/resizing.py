"""Resize and Upsample: per axis a table of taps, applied as copies, a gather or a product.

Where output x of an axis lies on the input, and with which weights its neighbours enter, follows
the operator's specification; both depend on sizes alone, so they are NumPy arrays at load time.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from skipconv_jax.onnx.nodes import Node, operator, positive
from skipconv_jax.onnx.operators.movement import take


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis to resize.

    Attributes:
      axis: which.
      size: of the input.
      out: of the output.
      scale: the file's, or out / size.
      roi: (start, end) in parts of the input, for `tf_crop_and_resize`.
    """

    axis: int
    size: int
    out: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


def coordinates(a: Axis, mode: str) -> np.ndarray:
    """Where each output position lies on the input, (out,)."""
    x = np.arange(a.out, dtype=np.float64)
    width = a.scale * a.size
    if mode == "align_corners":
        return x * (a.size - 1) / (width - 1) if width != 1 else np.zeros_like(x)
    if mode == "asymmetric":
        return x / a.scale
    if mode in ("tf_crop_and_resize", "tf_half_pixel_for_nn"):
        if mode == "tf_half_pixel_for_nn":
            return (x + 0.5) / a.scale
        span = (a.roi[1] - a.roi[0]) * (a.size - 1)
        start = a.roi[0] * (a.size - 1)
        return start + (x * span / (a.out - 1) if a.out > 1 else np.full_like(x, span / 2))
    half = (x + 0.5) / a.scale - 0.5
    if mode == "pytorch_half_pixel":
        return half if a.out > 1 else np.full_like(x, -0.5)
    if mode == "half_pixel_symmetric":
        return a.size / 2 * (1 - a.out / width) + half
    if mode == "half_pixel":
        return half
    raise ValueError(f"`coordinate_transformation_mode` (={mode!r}) must be one of ONNX's.")


def nearest(x: np.ndarray, mode: str, size: int) -> np.ndarray:
    """The index that each coordinate takes."""
    index = {
        "round_prefer_floor": lambda: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda: np.floor(x + 0.5),
        "floor": lambda: np.floor(x),
        "ceil": lambda: np.ceil(x),
    }[mode]()
    return np.clip(index, 0, size - 1).astype(np.int32)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def matrix(a: Axis, x: np.ndarray, mode: str, antialias: bool, outside: bool, cubic: float) -> Any:
    """Weights (out, size) of a linear or cubic resize at coordinates x.

    Args:
      antialias: widen the kernel where the axis shrinks.
      outside: neighbours outside of the input weigh nothing, instead of repeating the edge.
      cubic: the coefficient of the cubic kernel.
    """
    shrink = min(a.scale, 1.0) if antialias else 1.0
    reach = (1 if mode == "linear" else 2) / shrink
    at = np.floor(x)[:, None] + np.arange(-int(np.ceil(reach)), int(np.ceil(reach)) + 1)[None]
    distance = (at - x[:, None]) * shrink
    if mode == "linear":
        weight = np.clip(1 - np.abs(distance), 0, None)
    else:
        weight = _cubic(distance, cubic)
    if outside:
        weight = np.where((at < 0) | (at >= a.size), 0, weight)
    weight = weight / weight.sum(1, keepdims=True)
    table = np.zeros((a.out, a.size))
    rows = np.broadcast_to(np.arange(a.out)[:, None], at.shape)
    np.add.at(table, (rows, np.clip(at, 0, a.size - 1).astype(int)), weight)
    return table.astype(np.float32)


def _repeats(a: Axis, index: np.ndarray) -> int:
    """How often each position is repeated one behind the other; 0 where it isn't so."""
    factor, rest = divmod(a.out, a.size)
    even = not rest and (index == np.arange(a.out) // max(factor, 1)).all()
    return factor if even else 0


def _copies(x: Any, factors: dict[int, int]) -> Any:
    """Each position repeated along some axes: one broadcast, one reshape."""
    thin, wide = [], []
    for axis, n in enumerate(x.shape):
        thin += [n, 1] if axis in factors else [n]
        wide += [n, factors[axis]] if axis in factors else [n]
    blown = jnp.broadcast_to(x.reshape(thin), wide)
    return blown.reshape([n * factors.get(axis, 1) for axis, n in enumerate(x.shape)])


def _resize_nearest(x: Any, axes: Sequence[Axis], mode: str, nearest_mode: str) -> Any:
    index = {a.axis: nearest(coordinates(a, mode), nearest_mode, a.size) for a in axes}
    factors = {a.axis: _repeats(a, index[a.axis]) for a in axes}
    if all(factors.values()):
        return _copies(x, factors)
    for a in axes:
        x = take(x, index[a.axis], a.axis)
    return x


def _contract(x: Any, table: np.ndarray, axis: int) -> Any:
    y = lax.dot_general(
        x, jnp.asarray(table), (((axis,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
    )
    return jnp.moveaxis(y, -1, axis)


def resize(node: Node, x: Any, axes: Sequence[Axis], mode: str, coordinate_mode: str) -> Any:
    """`x` with some axes resized."""
    if mode == "nearest":
        nearest_mode = node.get("nearest_mode", "round_prefer_floor")
        y = _resize_nearest(x, axes, coordinate_mode, nearest_mode)
    else:
        y = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
        for a in axes:
            table = matrix(
                a,
                coordinates(a, coordinate_mode),
                mode,
                bool(node.get("antialias", 0)),
                bool(node.get("exclude_outside", 0)),
                node.get("cubic_coeff_a", -0.75),
            )
            y = _contract(y, table.astype(y.dtype), a.axis)
        y = y if y.dtype == x.dtype else jnp.round(y).astype(x.dtype)
    return _extrapolated(node, y, axes, coordinate_mode)


def _extrapolated(node: Node, y: Any, axes: Sequence[Axis], coordinate_mode: str) -> Any:
    """`tf_crop_and_resize` puts a value where a coordinate lies outside of the input."""
    if coordinate_mode != "tf_crop_and_resize":
        return y
    for a in axes:
        at = coordinates(a, coordinate_mode)
        outside = ((at < 0) | (at > a.size - 1)).reshape(-1, *(1,) * (y.ndim - a.axis - 1))
        outside = outside.reshape((1,) * (y.ndim - outside.ndim) + outside.shape)
        y = jnp.where(outside, np.asarray(node.get("extrapolation_value", 0.0), y.dtype), y)
    return y


def _from_scales(
    shape: Sequence[int], scales: Sequence[float], axes: Sequence[int]
) -> list[tuple[int, float]]:
    return [(int(np.floor(shape[a] * s)), float(s)) for a, s in zip(axes, scales, strict=True)]


def _from_sizes(
    node: Node, shape: Sequence[int], sizes: Sequence[int], axes: Sequence[int]
) -> list[tuple[int, float]]:
    scales = [n / shape[a] for n, a in zip(sizes, axes, strict=True)]
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return list(zip(map(int, sizes), scales, strict=True))
    scale = min(scales) if policy == "not_larger" else max(scales)
    # Halves up, as the specification rounds.
    return [(int(np.floor(scale * shape[a] + 0.5)), scale) for a in axes]


def _file_shape(node: Node, x: Any) -> tuple[int, ...]:
    return (1, *x.shape[1:]) if node.batched else x.shape


def _resize_axes(node: Node, shape: Sequence[int]) -> list[Axis]:
    """The axes that change, from the inputs `roi`, `scales` and `sizes` of Resize 11 and later."""
    rank = len(shape)
    axes = [positive(int(a), rank) for a in node.get("axes") or range(rank)]
    roi, scales, sizes = (node.statics.get(i) for i in (1, 2, 3))
    if sizes is not None and sizes.size:
        found = _from_sizes(node, shape, sizes.tolist(), axes)
    elif scales is not None and scales.size:
        found = _from_scales(shape, scales.tolist(), axes)
    else:
        raise ValueError(f"{node} must have `scales` or `sizes`.")
    crop = node.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    spans = [(0.0, 1.0)] * len(axes)
    if crop and roi is not None:
        spans = [(float(roi[i]), float(roi[i + len(axes)])) for i in range(len(axes))]
    made = [
        Axis(a, shape[a], out, scale, span)
        for a, (out, scale), span in zip(axes, found, spans, strict=True)
    ]
    return [a for a in made if a.out != a.size or a.scale != 1 or a.roi != (0.0, 1.0)]


def _spares_leading(node: Node, shapes: Any, constant: Any) -> bool:
    return all(a.axis for a in _resize_axes(node, shapes[0]))


@operator("Resize", 11, static=(1, 2, 3), rowwise=_spares_leading)
def _resize(node: Node, x: Any, *_: Any) -> Any:
    coordinate_mode = node.get("coordinate_transformation_mode", "half_pixel")
    axes = _resize_axes(node, _file_shape(node, x))
    return resize(node, x, axes, node.get("mode", "nearest"), coordinate_mode)


def _scale_axes(node: Node, shape: Sequence[int]) -> list[Axis]:
    scales = node.get("scales") if node.get("scales") is not None else node.statics[1].tolist()
    found = _from_scales(shape, scales, range(len(shape)))
    made = [Axis(a, shape[a], out, scale) for a, (out, scale) in enumerate(found)]
    return [a for a in made if a.out != a.size]


def _scales_trailing(node: Node, shapes: Any, constant: Any) -> bool:
    return all(a.axis for a in _scale_axes(node, shapes[0]))


def _by_scales(node: Node, x: Any, *_: Any) -> Any:
    """Resize 10 and Upsample: corners aligned at 0, nearest below."""
    axes, mode = _scale_axes(node, _file_shape(node, x)), node.get("mode", "nearest")
    if mode == "nearest":
        return _resize_nearest(x, axes, "asymmetric", "floor")
    return resize(node, x, axes, "linear", "asymmetric")


operator("Resize", 10, static=(1,), rowwise=_scales_trailing)(_by_scales)
operator("Upsample", 7, rowwise=_scales_trailing)(_by_scales)
operator("Upsample", 9, static=(1,), rowwise=_scales_trailing)(_by_scales)
