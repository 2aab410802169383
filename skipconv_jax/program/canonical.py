"""Convolutions as XLA's CPU backend has fast code for them; results stay the same.

XLA for CPUs puts convolutions into the layout of its fast kernels (NHWC, HWIO) only in a program's
entry computation. The gradients of a convolution are convolutions in other layouts, so inside
`lax.scan` they fall back to naive loops: on two cores the gradient of a scanned 3x3 convolution
took 15 times as long as the unrolled one. `canonical` transposes them by hand. It also writes
depthwise convolutions and their gradients as sums over taps, wherever they are (`ops.depthwise`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import lax

from skipconv_jax.ops.depthwise import depthwise, depthwise_kernel_gradient
from skipconv_jax.program.jaxprs import (
    CALLS,
    CHECKPOINTS,
    CONV,
    Place,
    aval,
    bind,
    channels_last,
    has_conv,
    run,
    window_first,
    without_constants,
)


def canonical(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with convolutions in loops, branches and checkpoints in NHWC and HWIO layout.

    Depthwise ones become sums over taps, in loops and outside. Apply it outside of `jax.grad`, so
    that the gradients' convolutions are seen, and inside of `jax.jit`. Kernel gradients of other
    grouped convolutions (`batch_group_count` > 1) stay as they are.
    """

    def wrapped(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        out = run(closed, jax.tree.leaves(args), _Rewriter(nested=False))
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return wrapped


def for_this_backend(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`canonical(fn)` where computations go to a CPU, else `fn`; wrap it right inside `jax.jit`."""
    return canonical(fn) if jax.default_backend() == "cpu" else fn


class _Rewriter:
    """Interprets a program as its arrays, convolutions as XLA's CPU backend likes them."""

    def __init__(self, nested: bool) -> None:
        self._nested = nested

    def constant(self, value: Any, literal: bool) -> Any:
        del literal
        return value

    def equation(self, eqn: jex.JaxprEqn, inputs: list[Any], place: Place) -> list[Any]:
        if eqn.primitive.name == CONV:
            if _is_depthwise(eqn):
                return [_depthwise(eqn, *inputs)]
            if self._nested and eqn.params["batch_group_count"] == 1:
                return [_convolution(eqn, *inputs)]
            return bind(eqn, inputs)
        if not has_conv(eqn):
            return bind(eqn, inputs)
        if eqn.primitive.name in CALLS:
            # Derivatives are taken by now, so custom rules mean nothing any more.
            return run(eqn.params[CALLS[eqn.primitive.name]], inputs, self, place)
        if eqn.primitive.name in CHECKPOINTS:
            # Its body has no place for constants, which calls that were entered leave behind.
            inner = _retrace(eqn.params["jaxpr"], ())
            jaxpr = without_constants(inner)
            return bind(eqn, [*inner.consts, *inputs], {**eqn.params, "jaxpr": jaxpr})
        return bind(eqn, inputs, {k: _rewritten(v) for k, v in eqn.params.items()})


def _rewritten(value: Any) -> Any:
    """A parameter of an equation with the jaxprs in it rewritten."""
    if isinstance(value, tuple | list):
        return type(value)(map(_rewritten, value))
    if isinstance(value, jex.ClosedJaxpr):
        return _retrace(value.jaxpr, value.consts)
    if isinstance(value, jex.Jaxpr):
        return _retrace(value, ()).jaxpr
    return value


def _retrace(jaxpr: jex.Jaxpr, consts: Sequence[Any]) -> jex.ClosedJaxpr:
    shapes = [v.aval for v in jaxpr.invars]
    program = jex.ClosedJaxpr(jaxpr, consts)
    return jax.make_jaxpr(lambda *args: run(program, args, _Rewriter(nested=True)))(*shapes)


def _is_depthwise(eqn: jex.JaxprEqn) -> bool:
    """Whether it has one filter per channel, or is the kernel gradient of such a convolution."""
    params, (lhs, rhs) = eqn.params, map(aval, eqn.invars)
    numbers = params["dimension_numbers"]
    channels = rhs.shape[numbers.rhs_spec[0]]
    forward = params["feature_group_count"] == lhs.shape[numbers.lhs_spec[1]] == channels
    backward = params["batch_group_count"] == lhs.shape[numbers.lhs_spec[0]] == channels
    return channels > 1 and (forward or backward)


def _depthwise(eqn: jex.JaxprEqn, x: jax.Array, kernel: jax.Array) -> jax.Array:
    params, rank = eqn.params, x.ndim
    numbers, out = params["dimension_numbers"], aval(eqn.outvars[0])
    wide = params["preferred_element_type"] or out.dtype
    x, kernel = x.astype(wide), kernel.astype(wide)
    x = x.transpose(channels_last(numbers.lhs_spec))
    padding, dilation = params["padding"], params["lhs_dilation"]
    order = channels_last(numbers.out_spec)
    if params["batch_group_count"] == 1:
        kernel = kernel.transpose(window_first(numbers.rhs_spec))
        strides = params["window_strides"]
        z = depthwise(x, kernel, strides, padding, params["rhs_dilation"], dilation)
    else:
        channel, inner, *window = numbers.rhs_spec
        # The channels are the batch of both operands here, and the cotangent is the kernel; the
        # convolution's strides are the gradient's kernel dilation and the other way round.
        z = depthwise_kernel_gradient(
            jnp.swapaxes(x, 0, -1),
            kernel.transpose(channels_last((inner, channel, *window))),
            [out.shape[axis] for axis in order[1:-1]],
            params["rhs_dilation"],
            padding,
            params["window_strides"],
            dilation,
        )
        z = jnp.moveaxis(z, -2, 0)
    return z.astype(out.dtype).transpose([order.index(axis) for axis in range(rank)])


def _convolution(eqn: jex.JaxprEqn, x: jax.Array, kernel: jax.Array) -> jax.Array:
    params = dict(eqn.params)
    numbers, rank = params["dimension_numbers"], x.ndim
    spatial = tuple(range(1, rank - 1))
    params["dimension_numbers"] = lax.ConvDimensionNumbers(
        (0, rank - 1, *spatial), (rank - 1, rank - 2, *range(rank - 2)), (0, rank - 1, *spatial)
    )
    x = x.transpose(channels_last(numbers.lhs_spec))
    (z,) = bind(eqn, [x, kernel.transpose(window_first(numbers.rhs_spec))], params)
    order = channels_last(numbers.out_spec)
    return z.transpose([order.index(axis) for axis in range(rank)])
