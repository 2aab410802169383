"""Taking traced programs apart: what every walk over the equations of a jaxpr needs."""

from collections.abc import Sequence
from typing import Any

import jax.extend.core as jex

CONV = "conv_general_dilated"
# Calls whose body can be evaluated in place of the call; the parameter that holds the body.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
CHECKPOINTS = ("remat", "remat2", "checkpoint")


def bind(
    eqn: jex.JaxprEqn, arrays: Sequence[Any], params: dict[str, Any] | None = None
) -> list[Any]:
    """The equation as it was, on other operands (and parameters); all its results."""
    bound = eqn.primitive.get_bind_params(eqn.params if params is None else params)
    functions, static = bound if isinstance(bound, tuple) else ((), bound)
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*functions, *arrays, **static)
    return list(out) if eqn.primitive.multiple_results else [out]


def has_conv(eqn: jex.JaxprEqn) -> bool:
    """Whether a convolution is anywhere in the bodies of an equation."""
    return any(
        inner.primitive.name == CONV or has_conv(inner)
        for body in jex.jaxprs_in_params(eqn.params)
        for inner in body.eqns
    )


def convolutions(eqn: jex.JaxprEqn) -> int:
    """How many convolutions an equation is or holds in its bodies."""
    if eqn.primitive.name == CONV:
        return 1
    bodies = jex.jaxprs_in_params(eqn.params)
    return sum(convolutions(inner) for body in bodies for inner in body.eqns)


def aval(atom: Any) -> Any:
    """Abstract value of a variable or literal; those met here are arrays."""
    return atom.aval


def channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    """Axes of a (batch, feature, *spatial) spec in channels-last order."""
    return (spec[0], *spec[2:], spec[1])


def window_first(spec: Sequence[int]) -> tuple[int, ...]:
    """Axes of an (out, in, *window) spec in (*window, in, out) order."""
    return (*spec[2:], spec[1], spec[0])
