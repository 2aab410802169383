"""Operators that only give the same elements other axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from skipconv_jax.onnx.nodes import Node, axes_of, operator


def target(node: Node, shape: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Sizes a Reshape asks for: 0 copies an axis, -1 takes what is left."""
    copy = not node.get("allowzero", 0)
    sizes = [shape[i] if n == 0 and copy else int(n) for i, n in enumerate(wanted)]
    if -1 in sizes:
        rest = -math.prod(sizes)
        sizes[sizes.index(-1)] = math.prod(shape) // rest if rest else 0
    return sizes


@operator("Reshape", 5, static=(1,), reshapes=True)
def _reshape(node: Node, x: Any, shape: Any) -> Any:
    return x.reshape(target(node, x.shape, shape.tolist()))


@operator("Flatten", reshapes=True)
def _flatten(node: Node, x: Any) -> Any:
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Squeeze", static=(1,), reshapes=True)
def _squeeze(node: Node, x: Any, axes: Any = None) -> Any:
    found = axes_of(node, x.ndim, 13)
    return jnp.squeeze(x, None if found is None else tuple(found))


@operator("Unsqueeze", static=(1,), reshapes=True)
def _unsqueeze(node: Node, x: Any, axes: Any = None) -> Any:
    raw = node.get("axes") if node.version < 13 else axes
    return jnp.expand_dims(x, tuple(int(a) for a in np.atleast_1d(raw)))


def _keeps_leading(node: Node, shapes: Any, constant: Any) -> bool:
    perm = node.get("perm")
    return perm is not None and perm[0] == 0


@operator("Transpose", rowwise=_keeps_leading)
def _transpose(node: Node, x: Any) -> Any:
    perm = node.get("perm") or range(x.ndim)[::-1]
    return jnp.transpose(x, tuple(perm))


def _expands_trailing(node: Node, shapes: Any, constant: Any) -> bool:
    wanted = node.statics[1]
    return len(wanted) < len(shapes[0]) or (len(wanted) == len(shapes[0]) and wanted[0] == 1)


@operator("Expand", 8, static=(1,), rowwise=_expands_trailing)
def _expand(node: Node, x: Any, shape: Any) -> Any:
    wide = np.broadcast_shapes(x.shape, tuple(shape.tolist()))
    return jnp.broadcast_to(x.reshape((1,) * (len(wide) - x.ndim) + x.shape), wide)


def _tiles_trailing(node: Node, shapes: Any, constant: Any) -> bool:
    return bool(node.statics[1][0] == 1)


@operator("Tile", 6, static=(1,), rowwise=_tiles_trailing)
def _tile(node: Node, x: Any, repeats: Any) -> Any:
    return jnp.tile(x, tuple(repeats.tolist()))


def _blocks(node: Node, x: Any) -> tuple[int, int, int, int, int]:
    return (*x.shape, node.get("blocksize"))


@operator("DepthToSpace", rowwise=lambda *_: True)
def _depth_to_space(node: Node, x: Any) -> Any:
    n, c, h, w, b = _blocks(node, x)
    small = c // (b * b)
    if node.get("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, small, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, small, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, small, h * b, w * b)


@operator("SpaceToDepth", rowwise=lambda *_: True)
def _space_to_depth(node: Node, x: Any) -> Any:
    n, c, h, w, b = _blocks(node, x)
    y = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if node.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return y.transpose(order).reshape(n, c * b * b, h // b, w // b)
