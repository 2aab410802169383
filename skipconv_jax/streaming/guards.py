"""Reset policies: when a stream takes a new reference frame. All jittable, none asks the host.

    guard = Guard.make(net, variables, frame, [Every(250), SceneCut(), Drift(every=50)])
    memory = guard.init(frame)
    y, state, memory, report = guard.apply(params, state, memory, frame)

A policy sees a frame before the network does, and the state of the network after it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from skipconv_jax.program.walk import Site, Visitor, evaluate, number_of_streams
from skipconv_jax.transform import NetParams, NetState, SkipNet, Skipper

Memory = Any


class Look(NamedTuple):
    """What a policy may look at; the functions cost what they compute, and only if called.

    Attributes:
      frame: x_t, `(B, H, W, C)`.
      firing: share of the first layer that the gates would fire on this frame, `(B,)`.
      dense: the dense network's output at named layers, `{name: (B, *out, Co)}`.
    """

    frame: jax.Array
    firing: Callable[[], jax.Array]
    dense: Callable[[Sequence[str]], dict[str, jax.Array]]


class Reset(Protocol):
    """A small frozen dataclass; its memory is a pytree of fixed structure."""

    def init(self, frame: Any) -> Memory:
        """Memory before the first frame."""
        ...

    def before(self, memory: Memory, look: Look) -> tuple[jax.Array, Memory]:
        """Streams `(B,)` bool for which this frame becomes a reference frame."""
        ...

    def after(
        self, memory: Memory, look: Look, state: NetState, fresh: jax.Array
    ) -> tuple[Memory, dict[str, jax.Array]]:
        """Memory for the next frame and named figures `(B,)` to report.

        Args:
          memory: from `before`.
          look: the frame.
          state: of the network after the frame.
          fresh: `(B,)` bool, streams for which it was a reference frame, for whatever reason.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Every:
    """A reference frame at least every `period` frames (T of the paper's Table 4).

    Attributes:
      period: frames from one reference frame to the next.
    """

    period: int

    def __post_init__(self) -> None:
        _check_count("period", self.period)

    def init(self, frame: Any) -> jax.Array:
        """Frames since the last reference frame, `(B,)`."""
        return jnp.zeros((number_of_streams(frame),), jnp.int32)

    def before(self, memory: jax.Array, look: Look) -> tuple[jax.Array, jax.Array]:
        """Where the period is over."""
        del look
        return memory >= self.period, memory

    def after(
        self, memory: jax.Array, look: Look, state: NetState, fresh: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Counts; any reference frame starts the period anew."""
        del look, state
        return jnp.where(fresh, 1, memory + 1), {}


@dataclasses.dataclass(frozen=True)
class SceneCut:
    """A reference frame where the picture changed everywhere and its colours changed too.

    A moving camera changes everything but the colours, a lamp only the colours: a cut is both.

    Attributes:
      colours: total variation of the channels' histograms to exceed, in [0, 1].
      firing: share of the first layer that must fire, in [0, 1]; 0 asks the colours alone, and
        spares running the first layer twice.
      bins: of the histograms.
      low: value of the first bin.
      high: value of the last bin.
    """

    colours: float = 0.25
    firing: float = 0.8
    bins: int = 16
    low: float = 0.0
    high: float = 255.0

    def __post_init__(self) -> None:
        _check_count("bins", self.bins)
        for name, share in (("colours", self.colours), ("firing", self.firing)):
            if not 0 <= share <= 1:
                raise ValueError(f"`{name}` (={share}) must be a share in [0, 1].")
        if not self.low < self.high:
            raise ValueError(f"`low` (={self.low}) must be less than `high` (={self.high}).")

    def init(self, frame: Any) -> dict[str, jax.Array]:
        """The last histogram, and whether there was a frame."""
        shape = (frame.shape[0], self.bins, frame.shape[-1])
        return {
            "histogram": jnp.zeros(shape, jnp.float32),
            "seen": jnp.zeros(shape[:1], jnp.bool_),
        }

    def histogram(self, frame: jax.Array) -> jax.Array:
        """`(B, bins, C)`, sums to 1 over the bins."""
        scaled = (frame.astype(jnp.float32) - self.low) / (self.high - self.low)
        place = jnp.clip(scaled * self.bins, 0, self.bins - 1).astype(jnp.int32)
        shares = [
            (place == b).astype(jnp.float32).mean(axis=tuple(range(1, frame.ndim - 1)))
            for b in range(self.bins)
        ]
        return jnp.stack(shares, axis=1)

    def before(
        self, memory: dict[str, jax.Array], look: Look
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Where both exceed their limits."""
        now = self.histogram(look.frame)
        distance = 0.5 * jnp.abs(now - memory["histogram"]).sum(axis=1).mean(axis=-1)
        cut = memory["seen"] & (distance > self.colours)
        if self.firing > 0:
            cut = cut & (look.firing() >= self.firing)
        return cut, {"histogram": now, "seen": jnp.ones_like(memory["seen"])}

    def after(
        self, memory: dict[str, jax.Array], look: Look, state: NetState, fresh: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Nothing to add."""
        del look, state, fresh
        return memory, {}


@dataclasses.dataclass(frozen=True)
class Drift:
    """Measures ||z~ - z|| / ||z|| against the dense network every few frames; resets past a bound.

    The reset takes effect on the next frame. A measurement costs the dense network up to the
    deepest sampled layer; `Guard.macs` counts it. (Under `vmap` it is paid on every frame: batch
    streams by the leading axis instead.)

    Attributes:
      every: frames between measurements.
      bound: relative error past which the stream is reset; infinity only reports.
      layers: names of sampled Skip-Convolutions; empty for the last one.
    """

    every: int = 50
    bound: float = 0.1
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_count("every", self.every)
        if not self.bound > 0:
            raise ValueError(
                f"`bound` (={self.bound}) must be positive; float('inf') reports only."
            )

    def init(self, frame: Any) -> dict[str, Any]:
        """Frames so far, streams due for a reset, and the last errors."""
        streams = number_of_streams(frame)
        errors = {name: jnp.zeros((streams,), jnp.float32) for name in self.layers}
        return {
            "frame": jnp.zeros((), jnp.int32),
            "due": jnp.zeros((streams,), jnp.bool_),
            "errors": errors,
        }

    def before(self, memory: dict[str, Any], look: Look) -> tuple[jax.Array, dict[str, Any]]:
        """Streams past the bound at the last measurement."""
        del look
        return memory["due"], {**memory, "due": jnp.zeros_like(memory["due"])}

    def after(
        self, memory: dict[str, Any], look: Look, state: NetState, fresh: jax.Array
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """Measures when it is time; between, the last measurement is reported again."""
        del fresh
        streams = memory["due"].shape[0]

        def measure() -> dict[str, jax.Array]:
            dense = look.dense(self.layers)
            return {
                name: _relative_error(state[name].output, dense[name], streams)
                for name in self.layers
            }

        now = memory["frame"] % self.every == self.every - 1
        errors = jax.lax.cond(now, measure, lambda: memory["errors"])
        worst = jnp.stack(list(errors.values())).max(axis=0)
        due = now & (worst > self.bound)
        new = {"frame": memory["frame"] + 1, "due": due, "errors": errors}
        return new, {f"drift/{name}": error for name, error in errors.items()}


def _relative_error(skipped: jax.Array, dense: jax.Array, streams: int) -> jax.Array:
    difference = (skipped - dense.astype(skipped.dtype)).reshape(streams, -1)
    size = jnp.linalg.norm(dense.astype(jnp.float32).reshape(streams, -1), axis=1)
    return jnp.linalg.norm(difference.astype(jnp.float32), axis=1) / jnp.maximum(size, 1e-12)


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` (={value!r}) must be a positive integer.")


class Report(NamedTuple):
    """What a frame gave, for the metrics.

    Attributes:
      fresh: `(B,)` bool, streams for which it was a reference frame.
      figures: named `(B,)`: `drift/<layer>`, the relative error at the last measurement.
    """

    fresh: jax.Array
    figures: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Guard:
    """A skipped network under reset policies. Made by `make`.

    Attributes:
      net: the network.
      policies: any of them may ask for a reference frame.
      first: name of the network's first Skip-Convolution.
    """

    net: SkipNet
    policies: tuple[Any, ...]
    first: str

    @classmethod
    def make(
        cls, net: SkipNet, variables: Any, x: Any, policies: Sequence[Any], *args: Any
    ) -> "Guard":
        """Checks the policies against the network.

        Args:
          net: from `skip`.
          variables: the network's own; shapes suffice.
          x: a frame; a shape suffices.
          policies: `Every`, `SceneCut`, `Drift` or your own; none leaves explicit resets.
          *args: further arguments of the network.

        Raises:
          ValueError: a network left dense, or a sampled layer that is none of its.
        """
        names = list(net.layers(variables, x, *args))
        if not names:
            raise ValueError("`net` must have a Skip-Convolution; its rules left all dense.")
        completed = []
        for policy in policies:
            if isinstance(policy, Drift):
                sampled = policy.layers or (names[-1],)
                missing = sorted(set(sampled) - set(names))
                if missing:
                    raise ValueError(
                        f"`layers` of Drift (={missing}) must be Skip-Convolutions of the network: "
                        f"{names}."
                    )
                policy = dataclasses.replace(policy, layers=tuple(sampled))
            completed.append(policy)
        return cls(net, tuple(completed), names[0])

    def init(self, x: Any) -> list[Memory]:
        """Memory of streams that have seen no frame."""
        return [policy.init(x) for policy in self.policies]

    def apply(
        self,
        params: NetParams,
        state: NetState,
        memory: Sequence[Memory],
        x: Any,
        *args: Any,
        streams: jax.Array | None = None,
    ) -> tuple[Any, NetState, list[Memory], Report]:
        """One frame: what the network returns, the state, the memory, and a report.

        Args:
          params: of the network.
          state: of the network.
          memory: from `init` or the previous frame.
          x: the frame.
          *args: further arguments of the network.
          streams: `(B,)` bool, explicit resets (a lost connection, a new camera).
        """
        look = Look(
            jax.tree.leaves(x)[0],
            lambda: first_firing(self.net, params, state, x, *args),
            lambda names: dense_outputs(self.net.fn, params["model"], x, names, *args),
        )
        flags = jnp.zeros((number_of_streams(x),), jnp.bool_) if streams is None else streams
        seen = []
        for policy, remembered in zip(self.policies, memory, strict=True):
            asked, remembered = policy.before(remembered, look)
            flags = flags | asked
            seen.append(remembered)
        fresh = flags | state[self.first].fresh
        y, state = self.net.apply(params, self.net.reset(state, flags), x, *args)
        new: list[Memory] = []
        figures: dict[str, jax.Array] = {}
        for policy, remembered in zip(self.policies, seen, strict=True):
            remembered, found = policy.after(remembered, look, state, fresh)
            new.append(remembered)
            figures |= found
        return y, state, new, Report(fresh, figures)

    def macs(self, variables: Any, x: Any, *args: Any) -> float:
        """Multiply-accumulates per frame and stream that the policies themselves spend, at most."""
        rows = self.net.table(variables, x, *args).rows
        total = 0.0
        for policy in self.policies:
            if isinstance(policy, Drift):
                deepest = max(i for i, row in enumerate(rows) if row.name in policy.layers)
                total += sum(row.macs for row in rows[: deepest + 1]) / policy.every
        return total


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
