"""Convolutions in loop bodies, laid out as XLA's CPU backend wants them.

XLA for CPUs puts convolutions into the layout of its fast kernels (NHWC, HWIO) only in a program's
entry computation. The gradients of a convolution are convolutions in other layouts, so inside
`lax.scan` they fall back to naive loops: on two cores the gradient of a scanned 3x3 convolution
took 15 times as long as the unrolled one. `canonical` transposes them by hand; results stay the
same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
from jax import lax

from skipconv_jax.jaxprs import CALLS, CONV, bind, channels_last, has_conv, window_first


def canonical(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with every convolution inside a loop, branch or checkpoint in NHWC and HWIO layout.

    Apply it outside of `jax.grad`, so that the gradients' convolutions are seen, and inside of
    `jax.jit`. Grouped kernel gradients (`batch_group_count` > 1) stay as they are.
    """

    def wrapped(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        out = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), nested=False)
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return wrapped


def _evaluate(
    jaxpr: jex.Jaxpr, consts: Sequence[Any], args: Sequence[Any], nested: bool
) -> list[Any]:
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        env.update(
            zip(eqn.outvars, _equation(eqn, [read(v) for v in eqn.invars], nested), strict=True)
        )
    return [read(v) for v in jaxpr.outvars]


def _equation(eqn: jex.JaxprEqn, inputs: list[Any], nested: bool) -> list[Any]:
    name = eqn.primitive.name
    if name == CONV:
        if nested and eqn.params["batch_group_count"] == 1:
            return [_convolution(eqn, *inputs)]
        return bind(eqn, inputs)
    if not has_conv(eqn):
        return bind(eqn, inputs)
    if name in CALLS:
        # Derivatives are taken by now, so custom rules mean nothing any more.
        body = eqn.params[CALLS[name]]
        return _evaluate(body.jaxpr, body.consts, inputs, nested)
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
    return jax.make_jaxpr(lambda *args: _evaluate(jaxpr, consts, args, nested=True))(*shapes)


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
