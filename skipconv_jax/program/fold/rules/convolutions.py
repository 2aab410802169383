"""Convolutions, transposed ones as well."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops.geometry import Conv
from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.reader import Known, Reader, Rule
from skipconv_jax.program.fold.views import (
    Ref,
    View,
    laid,
)
from skipconv_jax.program.jaxprs import CONV, channels_last, window_first


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
        levels = _levels(kernel, numbers.rhs_spec, weights)
        ref = reader.make(lambda o: _conv_node(reader, ref, o, conv, weights, levels), shape)
    return laid(ref, shape, order)


def _conv_node(
    reader: Reader,
    x: Ref,
    out: Ref,
    conv: Conv,
    weights: np.ndarray,
    levels: g.Levels | None = None,
) -> g.ConvNode:
    size = np.abs(weights)
    means = float(size.mean()), float(size.sum())
    return g.ConvNode((x,), out, reader.site.name, conv, weights, None, *means, levels=levels)


def _levels(kernel: Known, spec: Any, weights: np.ndarray) -> g.Levels | None:
    """The kernel's quantised form, where its scales go by output channels."""
    if kernel.levels is None:
        return None
    steps = np.transpose(kernel.levels.steps, window_first(spec))
    channels = steps.shape[-1]
    if kernel.levels.scale.size not in (1, channels):
        return None
    scale = np.broadcast_to(kernel.levels.scale, (channels,))
    # Which axis the scales belong to is not said: its values tell.
    same = np.array_equal(steps.astype(np.float32) * scale, weights)
    return g.Levels(steps, scale) if same else None


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
    output channels of one, which become positions after it.

    Phases have windows of different places, joined by zeros: a NaN or infinity is shown wherever
    the network shows it, and where windows overlap also one position beside.
    """
    stride = params["lhs_dilation"][0]
    if set(params["lhs_dilation"]) != {stride} or set(params["window_strides"]) != {1}:
        return None
    groups = params["feature_group_count"]
    b, h, w, ci = reader.shape(x)
    kh, kw, inner, co = weights.shape
    axes = [
        _phases(n, k, out, stride, pads[0], dilation)
        for n, k, out, pads, dilation in zip(
            (h, w), (kh, kw), shape[1:3], params["padding"], params["rhs_dilation"], strict=True
        )
    ]
    (rows, th, pad_h), (cols, tw, pad_w) = axes
    if min(*pad_h, *pad_w) < 0:
        return None
    # Output channels go by group, by phase, by channel of the group.
    kernel = np.zeros((th, tw, inner, groups, stride, stride, co // groups), np.float32)
    split = weights.reshape(kh, kw, inner, groups, co // groups)
    for py, row in enumerate(rows):
        for px, col in enumerate(cols):
            for ty, jy in row:
                for tx, jx in col:
                    kernel[ty, tx, :, :, py, px] = split[jy, jx]
    kernel = kernel.reshape(th, tw, inner, stride * stride * co)
    conv = Conv.make((b, h, w, ci), kernel.shape, padding=(pad_h, pad_w), groups=groups)
    small = (b, *conv.out_spatial, kernel.shape[3])
    deep = reader.make(lambda o: _conv_node(reader, x, o, conv, kernel), small)
    if groups > 1:
        by_group, order = deep, np.arange(small[3]).reshape(groups, stride * stride, co // groups)
        index = tuple(int(i) for i in order.swapaxes(0, 1).ravel())
        deep = reader.make(lambda o: g.ChannelsNode((by_group,), o, index), small)
    big = (b, small[1] * stride, small[2] * stride, co)
    ref = reader.make(lambda o: g.DepthToSpaceNode((deep,), o, stride), big)
    if big == shape:
        return ref
    sizes = (shape[1], shape[2])
    return reader.make(lambda o: g.CropNode((ref,), o, (0, 0), sizes, (1, 1)), shape)


RULES: dict[str, Rule] = {CONV: _conv}
