"""Looks into a network without running all of it: its first gate, its dense outputs."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from skipconv_jax.program.walk import Site, Visitor, evaluate, number_of_streams
from skipconv_jax.transform import NetParams, NetState, SkipNet, Skipper


class _Found(Exception):
    """Ends an evaluation once a visitor has what it came for."""


class _Dense(Visitor):
    """Collects the dense outputs of named convolutions, then stops."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._wanted, self._outer = set(names), self.made

    def __call__(self, site: Site, x: jax.Array, kernel: jax.Array) -> jax.Array | None:
        if site.name not in self._wanted or site.conv is None:
            return None
        self.made[site.name] = z = site.conv(x, kernel)
        # Inside `jax.checkpoint` what was made must leave as an output: no stopping there.
        if self.made is self._outer and len(self.made) == len(self._wanted):
            raise _Found
        return z


class _First(Skipper):
    """Runs the first Skip-Convolution, then stops."""

    def __init__(self, net: SkipNet, params: NetParams, state: NetState) -> None:
        super().__init__(net, params, state, None)
        self._outer = self.made

    def __call__(self, site: Site, x: jax.Array, kernel: jax.Array) -> jax.Array | None:
        z = super().__call__(site, x, kernel)
        if z is not None and self.made is self._outer:
            raise _Found
        return z


def first_firing(net: SkipNet, params: NetParams, state: NetState, x: Any, *args: Any) -> jax.Array:
    """Share of its blocks the first Skip-Convolution would fire on a frame, `(B,)`.

    Only that layer runs.

    Args:
      net: from `skip`.
      params: of the network.
      state: before the frame.
      x: the frame.
      *args: further arguments of the network.
    """
    visitor = _First(net, params, state)
    with contextlib.suppress(_Found):
        evaluate(net.fn, params["model"], x, args, visitor)
    first = next(layer for name, layer in visitor.made.items() if name in state)
    return first.fired.reshape(number_of_streams(x), -1).mean(axis=1)


def dense_outputs(
    fn: Callable[..., Any], variables: Any, x: Any, names: Sequence[str], *args: Any
) -> dict[str, jax.Array]:
    """Outputs of named convolutions of the dense network, no deeper than needed.

    Args:
      fn: the network, as for `skip`.
      variables: its own.
      x: a frame.
      names: of convolutions.
      *args: further arguments of `fn`.

    Raises:
      ValueError: a name that is none of the network's.
    """
    visitor = _Dense(names)
    with contextlib.suppress(_Found):
        evaluate(fn, variables, x, args, visitor)
    missing = sorted(set(names) - set(visitor.made))
    if missing:
        raise ValueError(f"`names` (={missing}) must be convolutions of the network.")
    return visitor.made
