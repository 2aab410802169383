"""Reset policies: when a stream takes a new reference frame. All jittable, none asks the host.

    guard = Guard.make(plan, [Every(250), SceneCut(), Drift(every=50)])
    memory = guard.init()
    y, state, memory, report = guard.advance(plan.constants, state, memory, frame)

A policy sees a frame before the network does, and what the network made of it after it. Guards run
on every engine; `streaming.runner.Runner` takes one beside a plan.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from skipconv_jax.plans.base import FirstLayer, Plan, shapes_of
from skipconv_jax.plans.plain import plain_plan
from skipconv_jax.plans.probe import dense_outputs, first_firing
from skipconv_jax.program.walk import number_of_streams
from skipconv_jax.transform import SkipNet

__all__ = [
    "OUTPUT",
    "Drift",
    "Every",
    "Guard",
    "Look",
    "Report",
    "Reset",
    "SceneCut",
    "dense_outputs",
    "first_firing",
]

Memory = Any
OUTPUT = "output"  # what the network returns, among the names of sampled layers


class Look(NamedTuple):
    """What a policy may look at; the functions cost what they compute, and only if called.

    Attributes:
      frame: x_t, `(B, H, W, C)`.
      firing: share of the first layer that the gates would fire on this frame, `(B,)`.
      error: after the frame: relative error `(B,)` against the dense network, of named layers, or
        of what the network returns (named 'output') where none is named.
    """

    frame: jax.Array
    firing: Callable[[], jax.Array]
    error: Callable[[Sequence[str]], dict[str, jax.Array]]


class Reset(Protocol):
    """A reset policy: a small frozen dataclass; its memory is a pytree of fixed structure.

    One that never calls `look.firing()` says so by an attribute `looks_at_firing = False`: asking
    runs the first layer twice, and a saved plan can't.
    """

    def init(self, frame: Any) -> Memory:
        """Memory before the first frame."""
        ...

    def before(self, memory: Memory, look: Look) -> tuple[jax.Array, Memory]:
        """Streams `(B,)` bool for which this frame becomes a reference frame."""
        ...

    def after(
        self, memory: Memory, look: Look, fresh: jax.Array
    ) -> tuple[Memory, dict[str, jax.Array]]:
        """Memory for the next frame and named figures `(B,)` to report.

        Args:
          memory: from `before`.
          look: the frame, and what the network made of it.
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
    looks_at_firing: ClassVar[bool] = False

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
        self, memory: jax.Array, look: Look, fresh: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Counts; any reference frame starts the period anew."""
        del look
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

    @property
    def looks_at_firing(self) -> bool:
        """Whether it asks how much of the first layer fires."""
        return self.firing > 0

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
        self, memory: dict[str, jax.Array], look: Look, fresh: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Nothing to add."""
        del look, fresh
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
      layers: names of sampled Skip-Convolutions, which the plain engine alone can look at; empty
        for the last one there, and for what the network returns on the other engines.
    """

    every: int = 50
    bound: float = 0.1
    layers: tuple[str, ...] = ()
    looks_at_firing: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_count("every", self.every)
        if not self.bound > 0:
            raise ValueError(
                f"`bound` (={self.bound}) must be positive; float('inf') reports only."
            )

    def init(self, frame: Any) -> dict[str, Any]:
        """Frames so far, streams due for a reset, and the last errors."""
        streams = number_of_streams(frame)
        errors = {name: jnp.zeros((streams,), jnp.float32) for name in self.layers or (OUTPUT,)}
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
        self, memory: dict[str, Any], look: Look, fresh: jax.Array
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """Measures when it is time; between, the last measurement is reported again."""
        del fresh
        now = memory["frame"] % self.every == self.every - 1
        errors = jax.lax.cond(now, lambda: look.error(self.layers), lambda: memory["errors"])
        worst = jnp.stack(list(errors.values())).max(axis=0)
        due = now & (worst > self.bound)
        new = {"frame": memory["frame"] + 1, "due": due, "errors": errors}
        return new, {f"drift/{name}": error for name, error in errors.items()}


def _relative_error(skipped: Any, dense: Any, streams: int) -> jax.Array:
    """||z~ - z|| / ||z|| over all arrays of a tree, per stream."""

    def joined(tree: Any) -> jax.Array:
        leaves = [a.astype(jnp.float32).reshape(streams, -1) for a in jax.tree.leaves(tree)]
        return jnp.concatenate(leaves, axis=1)

    size = jnp.linalg.norm(joined(dense), axis=1)
    difference = jnp.linalg.norm(joined(skipped) - joined(dense), axis=1)
    return difference / jnp.maximum(size, 1e-12)


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` (={value!r}) must be a positive integer.")


class Report(NamedTuple):
    """What a frame gave, for the metrics.

    Attributes:
      fresh: `(B,)` bool, streams for which it was a reference frame.
      figures: named `(B,)`: `drift/<layer>`, the relative error at the last measurement.
      masks: as the plan's `step` gives them.
    """

    fresh: jax.Array
    figures: dict[str, jax.Array]
    masks: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Guard:
    """A plan under reset policies. Made by `make`.

    Attributes:
      plan: on any engine.
      policies: any of them may ask for a reference frame.
      first: the plan's first Skip-Convolution, if a policy asks how much of it would fire.
    """

    plan: Plan
    policies: tuple[Any, ...]
    first: FirstLayer | None

    @classmethod
    def make(cls, plan: Plan | SkipNet, *args: Any) -> "Guard":
        """`make(plan, policies)`; checks the policies against the network.

        `make(net, variables, x, policies)` is that of the network as it is (`plain_plan`), whose
        parameters are given to `advance` frame by frame; shapes of variables and frame suffice.

        Args:
          plan: from `compile_plan`, or a skipped network.
          *args: policies (`Every`, `SceneCut`, `Drift` or your own; none leaves explicit resets),
            with the network's variables and a frame before them where there is no plan.

        Raises:
          ValueError: a network left dense, or a sampled layer that the engine can't look at.
        """
        if isinstance(plan, SkipNet):
            variables, x, *rest = args
            args = tuple(rest)
            plan = plain_plan(plan, {"model": shapes_of(variables), "gates": {}}, x)
        (policies,) = args
        names = [row.name for row in plan.table.skipped()]
        if not names:
            raise ValueError("`net` must have a Skip-Convolution; its rules left all dense.")
        made = tuple(_completed(policy, plan, names) for policy in policies)
        asks = any(getattr(policy, "looks_at_firing", True) for policy in made)
        return cls(plan, made, plan.first_layer() if asks else None)

    def init(self, streams: Any = None) -> tuple[list[Memory], Memory]:
        """Memory of streams that have seen no frame, by default as many as the plan's frame has."""
        count = self.plan.streams if streams is None else streams
        count = count if isinstance(count, int) else number_of_streams(count)
        frame = jax.tree.map(lambda a: jnp.zeros((count, *a.shape[1:]), a.dtype), self.plan.frame)
        memories = [policy.init(jax.tree.leaves(frame)[0]) for policy in self.policies]
        return memories, () if self.first is None else self.first.init(count)

    def advance(
        self,
        constants: Any,
        state: Any,
        memory: tuple[Sequence[Memory], Memory],
        x: Any,
        *,
        streams: jax.Array | None = None,
    ) -> tuple[Any, Any, tuple[list[Memory], Memory], Report]:
        """One frame: what the network returns, the state, the memory, and a report.

        Args:
          constants: of the plan; parameters of a network as it is.
          state: of the plan.
          memory: from `init` or the previous frame.
          x: the frame.
          streams: `(B,)` bool, explicit resets (a lost connection, a new camera).
        """
        count, (memories, first) = number_of_streams(x), memory
        flags = jnp.zeros((count,), jnp.bool_) if streams is None else streams
        look = Look(
            jax.tree.leaves(x)[0],
            lambda: self._firing(first, state, x, constants),
            lambda names: {},
        )
        seen = []
        for policy, remembered in zip(self.policies, memories, strict=True):
            asked, remembered = policy.before(remembered, look)
            flags = flags | asked
            seen.append(remembered)
        fresh = flags | self.plan.fresh(state)
        y, state, masks = self.plan.apply(self.plan.reset(state, flags), x, constants)
        look = look._replace(error=lambda names: self._error(names, state, constants, x, y))
        new: list[Memory] = []
        figures: dict[str, jax.Array] = {}
        for policy, remembered in zip(self.policies, seen, strict=True):
            remembered, found = policy.after(remembered, look, fresh)
            new.append(remembered)
            figures |= found
        if self.first is not None:
            # A stream reset from outside starts anew in the plan's state alone.
            first = self.first.after(first, x, fresh)
        return y, state, (new, first), Report(fresh, figures, masks)

    def apply(
        self,
        params: Any,
        state: Any,
        memory: tuple[Sequence[Memory], Memory],
        x: Any,
        *,
        streams: jax.Array | None = None,
    ) -> tuple[Any, Any, tuple[list[Memory], Memory], Report]:
        """`advance`, by its name of 0.1.0."""
        return self.advance(params, state, memory, x, streams=streams)

    def _firing(self, first: Memory, state: Any, x: Any, constants: Any) -> jax.Array:
        if self.first is None:
            raise AssertionError("no policy was to ask for the first layer")
        return self.first.firing(first, state, x, constants)

    def _error(
        self, names: Sequence[str], state: Any, constants: Any, x: Any, y: Any
    ) -> dict[str, jax.Array]:
        streams = number_of_streams(x)
        if names:
            skipped, dense = self.plan.sampled(state, constants, x, names)
            return {n: _relative_error(skipped[n], dense[n], streams) for n in names}
        # A stream's first frame is what the dense network makes of it, on the same engine.
        dense, _, _ = self.plan.apply(self.plan.init_state(streams), x, constants)
        return {OUTPUT: _relative_error(y, dense, streams)}

    def macs(self) -> float:
        """Multiply-accumulates per frame and stream that the policies themselves spend, at most."""
        rows = self.plan.table.rows
        total = 0.0
        for policy in self.policies:
            if isinstance(policy, Drift):
                sampled = [i for i, row in enumerate(rows) if row.name in policy.layers]
                deepest = max(sampled, default=len(rows) - 1)
                total += sum(row.macs for row in rows[: deepest + 1]) / policy.every
        return total


def _completed(policy: Any, plan: Plan, names: Sequence[str]) -> Any:
    """The policy, with layers to look at where the engine can."""
    if not isinstance(policy, Drift):
        return policy
    sampled = policy.layers or ((names[-1],) if plan.looks_inside else ())
    missing = sorted(set(sampled) - set(names))
    if missing:
        raise ValueError(
            f"`layers` of Drift (={missing}) must be Skip-Convolutions of the network: {names}."
        )
    if sampled and not plan.looks_inside:
        raise ValueError(
            f"`layers` of Drift (={list(sampled)}) must be empty on the {plan.engine} engine, "
            "which keeps no layer's own output: leave it empty to measure what the network "
            "returns, or compile the plan with engine='plain'."
        )
    return dataclasses.replace(policy, layers=tuple(sampled))
