"""A network that is traced once: whatever reads it replays the same equations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp


class Replay:
    """`fn(variables, x)` for arguments of the shapes it was traced with; others trace it anew.

    Tracing runs the Python of the network, which takes seconds for a deep one; replaying its
    equations takes a fraction of that.
    """

    def __init__(self, fn: Callable[..., Any], variables: Any, x: Any) -> None:
        self._fn = fn
        closed, out = jax.make_jaxpr(fn, return_shape=True)(variables, x)
        self._replay = jex.jaxpr_as_fun(closed)
        self._out = jax.tree.structure(out)
        self._made_for = _signature((variables, x))

    def __call__(self, variables: Any, x: Any, *args: Any) -> Any:
        """What `fn` returns."""
        if args or _signature((variables, x)) != self._made_for:
            return self._fn(variables, x, *args)
        return jax.tree.unflatten(self._out, self._replay(*jax.tree.leaves((variables, x))))


def _signature(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    kinds = tuple((jnp.shape(a), getattr(a, "dtype", None) or jnp.result_type(a)) for a in leaves)
    return structure, kinds
