"""Taking traced programs apart: the only module that enters jaxprs, nested calls and constants.

`run` evaluates a jaxpr by an `Interpreter`, which says what constants and equations mean to it:
arrays (`walk`), what is known of them (`sites`, `compress.channels`), nodes (`fold`). Each equation
has a place, the numbers of the equations that lead to it, so that what one interpreter finds out
about an equation another one looks up.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.extend.core as jex
from jax.interpreters import partial_eval

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
Place = tuple[int, ...]
V = TypeVar("V")


class Interpreter(Protocol[V]):
    """What a program means to one reader of it."""

    def constant(self, value: Any, literal: bool) -> V:
        """A constant of the program, or a number written in an equation."""
        ...

    def equation(self, eqn: jex.JaxprEqn, inputs: list[V], place: Place) -> Sequence[V]:
        """Results of an equation; `enter` evaluates the body of a call."""
        ...


def trace(fn: Callable[..., Any], *args: Any) -> tuple[jex.ClosedJaxpr, Any]:
    """The program of `fn(*args)` without what its results don't need, and their structure."""
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    needed = [True] * len(closed.jaxpr.outvars)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, needed, instantiate=True)
    return jex.ClosedJaxpr(jaxpr, closed.consts), jax.tree.structure(shape)


def run(
    program: jex.ClosedJaxpr, inputs: Sequence[V], interpreter: Interpreter[V], place: Place = ()
) -> list[V]:
    """Results of a program whose arguments are `inputs`, equation by equation."""
    jaxpr = program.jaxpr
    consts = [interpreter.constant(c, False) for c in program.consts]
    env: dict[Any, V] = dict(
        zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True)
    )

    def read(atom: Any) -> V:
        return interpreter.constant(atom.val, True) if isinstance(atom, jex.Literal) else env[atom]

    for number, eqn in enumerate(jaxpr.eqns):
        outputs = interpreter.equation(eqn, [read(v) for v in eqn.invars], (*place, number))
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def body(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr | None:
    """What a call or checkpoint runs; None for every other equation."""
    name = eqn.primitive.name
    if name in CHECKPOINTS:
        return jex.ClosedJaxpr(eqn.params["jaxpr"], ())
    return eqn.params[CALLS[name]] if name in CALLS else None


def bodies(eqn: jex.JaxprEqn) -> Iterator[jex.Jaxpr]:
    """Every program among the parameters of an equation: bodies, conditions, branches."""
    yield from jex.jaxprs_in_params(eqn.params)


def hidden(
    jaxpr: jex.Jaxpr, inputs: Sequence[V], interpreter: Interpreter[V], place: Place
) -> None:
    """Runs the body of an equation that isn't entered, whose last arguments are `inputs`.

    Constants, carries and operands end the argument list of every control-flow primitive; other
    arguments are constants of value None.
    """
    tail = list(inputs[len(inputs) - len(jaxpr.invars) :]) if jaxpr.invars else []
    missing = len(jaxpr.invars) - len(tail)
    given = [*(interpreter.constant(None, False) for _ in range(missing)), *tail]
    run(jex.ClosedJaxpr(jaxpr, [None] * len(jaxpr.constvars)), given, interpreter, place)


def bind(
    eqn: jex.JaxprEqn, arrays: Sequence[Any], params: dict[str, Any] | None = None
) -> list[Any]:
    """The equation as it was, on other operands (and parameters); all its results."""
    bound = eqn.primitive.get_bind_params(eqn.params if params is None else params)
    functions, static = bound if isinstance(bound, tuple) else ((), bound)
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*functions, *arrays, **static)
    return list(out) if eqn.primitive.multiple_results else [out]


def without_constants(program: jex.ClosedJaxpr) -> jex.Jaxpr:
    """The same program with its constants as its first arguments."""
    count = len(program.consts)

    def whole(*values: Any) -> Any:
        closed = jex.ClosedJaxpr(program.jaxpr, values[:count])
        return jex.jaxpr_as_fun(closed)(*values[count:])

    shapes = [v.aval for v in program.jaxpr.invars]
    made = jax.make_jaxpr(whole)(*program.consts, *shapes)
    if made.consts:
        raise AssertionError("constants that are arguments leave none behind")
    return made.jaxpr


def has_conv(eqn: jex.JaxprEqn) -> bool:
    """Whether a convolution is anywhere in the bodies of an equation."""
    return any(
        inner.primitive.name == CONV or has_conv(inner)
        for jaxpr in bodies(eqn)
        for inner in jaxpr.eqns
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
