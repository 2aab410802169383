"""Convolutions, in the file's layout: (N, C, *spatial), kernels (O, I / groups, *window)."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from skipconv_jax.onnx.nodes import Node, first_only, operator

Pads = list[tuple[int, int]]


def window_of(node: Node, window: Sequence[int]) -> tuple[list[int], list[int]]:
    """Strides and dilations, 1 by default."""
    ones = [1] * len(window)
    return list(node.get("strides", ones)), list(node.get("dilations", ones))


def pads_of(
    node: Node,
    spatial: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> Pads:
    """(before, after) per spatial axis, from `pads` or `auto_pad`."""
    mode = node.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = node.get("pads", [0] * (2 * len(window)))
        return list(zip(pads[: len(window)], pads[len(window) :], strict=True))
    if mode == "VALID":
        return [(0, 0)] * len(window)
    result = []
    for n, k, s, d in zip(spatial, window, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small, large = total // 2, total - total // 2
        result.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return result


def add_bias(z: Any, bias: Any) -> Any:
    """z (N, C, *spatial) + bias (C,)."""
    return z if bias is None else z + bias.reshape(1, -1, *(1,) * (z.ndim - 2))


@operator("Conv", rowwise=first_only)
def _conv(node: Node, x: Any, kernel: Any, bias: Any = None) -> Any:
    window = kernel.shape[2:]
    strides, dilations = window_of(node, window)
    z = lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=pads_of(node, x.shape[2:], window, strides, dilations),
        rhs_dilation=dilations,
        feature_group_count=node.get("group", 1),
    )
    return add_bias(z, bias)


def _transposed_pads(
    node: Node, spatial: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> tuple[Pads, list[int]]:
    """What is cut from each side of the full output, and what is added after it."""
    extra = list(node.get("output_padding", [0] * len(spatial)))
    mode, shape = node.get("auto_pad", "NOTSET"), node.get("output_shape")
    if shape is None and mode in ("NOTSET", "VALID", ""):
        pads = node.get("pads", [0] * (2 * len(spatial)))
        return list(zip(pads[: len(spatial)], pads[len(spatial) :], strict=True)), extra
    shape = shape or [n * s for n, s in zip(spatial, strides, strict=True)]
    cut: Pads = []
    for n, s, r, e, out in zip(spatial, strides, reach, extra, shape[-len(spatial) :], strict=True):
        total = (n - 1) * s + e + r - out
        small, large = total // 2, total - total // 2
        cut.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return cut, extra


@operator("ConvTranspose", rowwise=first_only)
def _conv_transpose(node: Node, x: Any, kernel: Any, bias: Any = None) -> Any:
    """A convolution over an input with zeros between its positions, kernel (I, O / groups, ...)."""
    window, groups = kernel.shape[2:], node.get("group", 1)
    strides, dilations = window_of(node, window)
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    cut, extra = _transposed_pads(node, x.shape[2:], reach, strides)
    i, o = kernel.shape[:2]
    flipped = jnp.flip(kernel, range(2, kernel.ndim))
    if groups == 1:
        turned = jnp.swapaxes(flipped, 0, 1)
    else:
        turned = flipped.reshape(groups, i // groups, o, *window).swapaxes(1, 2)
        turned = turned.reshape(groups * o, i // groups, *window)
    z = lax.conv_general_dilated(
        x,
        turned,
        window_strides=[1] * len(window),
        padding=[
            (r - 1 - lo, r - 1 - hi + e) for r, (lo, hi), e in zip(reach, cut, extra, strict=True)
        ],
        lhs_dilation=strides,
        rhs_dilation=dilations,
        feature_group_count=groups,
    )
    return add_bias(z, bias)
