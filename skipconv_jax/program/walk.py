"""Evaluates a traced network and hands every convolution on the frame to a visitor."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex

from skipconv_jax.program.jaxprs import (
    CHECKPOINTS,
    CONV,
    Place,
    aval,
    bind,
    body,
    channels_last,
    has_conv,
    run,
    window_first,
)
from skipconv_jax.program.sites import Site, Traced, leaf_name, number_of_streams

__all__ = ["Site", "Visitor", "evaluate", "find_sites", "leaf_name", "number_of_streams"]


class Visitor:
    """Computes skippable convolutions; what it makes per site leaves through `made`."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def __call__(self, site: Site, x: jax.Array, kernel: jax.Array) -> jax.Array | None:
        """z `(N, *spatial, Co)` of x `(N, *spatial, Ci)`, kernel `(*window, Ci / groups, Co)`.

        None leaves the convolution as it is.
        """
        del site, x, kernel
        return None


def find_sites(
    fn: Callable[..., Any], variables: Any, x: Any, args: Sequence[Any] = ()
) -> list[Site]:
    """Every convolution of `fn(variables, x, *args)` in the order of the trace; shapes suffice."""
    return list(Traced.of(fn, variables, x, args).sites.values())


def evaluate(
    fn: Callable[..., Any], variables: Any, x: Any, args: Sequence[Any], visit: Visitor
) -> tuple[Any, list[Site]]:
    """Evaluates `fn(variables, x, *args)`, each skippable convolution replaced by `visit`.

    Args:
      fn: pure function; `x` is a pytree whose arrays lead with the axis of B streams.
      variables: pytree of arrays.
      x: the frame.
      args: further arrays (dropout keys); they count as independent of the frame.
      visit: computes a skippable convolution in channels-last layout.

    Returns:
      What `fn` returns, and every convolution met, in the order of the trace.
    """
    traced = Traced.of(fn, variables, x, args)
    arrays = jax.tree.leaves((variables, x, tuple(args)))
    outputs = run(traced.program, arrays, _Evaluator(traced, visit))
    return jax.tree.unflatten(traced.tree, outputs), list(traced.sites.values())


class _Evaluator:
    """Interprets a program as its arrays, convolutions by the visitor."""

    def __init__(self, traced: Traced, visit: Visitor) -> None:
        self._sites, self._visit = traced.sites, visit

    def constant(self, value: Any, literal: bool) -> Any:
        del literal
        return value

    def equation(self, eqn: jex.JaxprEqn, inputs: list[Any], place: Place) -> list[Any]:
        if eqn.primitive.name == CONV:
            return self._convolution(eqn, inputs, self._sites[place])
        inner = body(eqn) if has_conv(eqn) else None
        if inner is None:
            return bind(eqn, inputs)
        if eqn.primitive.name in CHECKPOINTS:
            return self._remat(eqn, inner, inputs, place)
        return run(inner, inputs, self, place)

    def _remat(
        self, eqn: jex.JaxprEqn, inner: jex.ClosedJaxpr, inputs: list[Any], place: Place
    ) -> list[Any]:
        """Rebuilds `jax.checkpoint`; whatever the visitor makes inside must leave as an output."""

        def checkpointed(*arrays: Any) -> tuple[list[Any], Any]:
            outer, self._visit.made = self._visit.made, {}
            outputs = run(inner, arrays, self, place)
            made, self._visit.made = self._visit.made, outer
            return outputs, made

        prevent_cse, policy = eqn.params["prevent_cse"], eqn.params["policy"]
        outputs, made = jax.checkpoint(checkpointed, prevent_cse=prevent_cse, policy=policy)(
            *inputs
        )
        self._visit.made.update(made)
        return outputs

    def _convolution(self, eqn: jex.JaxprEqn, inputs: list[Any], site: Site) -> list[Any]:
        if site.dense_because:
            return bind(eqn, inputs)
        x, kernel = inputs
        numbers, out = eqn.params["dimension_numbers"], aval(eqn.outvars[0])
        z = self._visit(
            site,
            x.transpose(channels_last(numbers.lhs_spec)),
            kernel.transpose(window_first(numbers.rhs_spec)),
        )
        if z is None:
            return bind(eqn, inputs)
        order = channels_last(numbers.out_spec)
        return [z.astype(out.dtype).transpose([order.index(axis) for axis in range(len(order))])]
