"""Frames through a plan, one by one or by the piece, and what is read off after each of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from skipconv_jax import macs
from skipconv_jax.moved import attribute
from skipconv_jax.plans.base import Constants, Plan, shapes_of
from skipconv_jax.plans.plain import plain_plan
from skipconv_jax.program.canonical import for_this_backend
from skipconv_jax.streaming.guards import Guard
from skipconv_jax.transform import SkipNet

# The plan's state, with the guard's memory behind it where there is a guard.
Carry = Any


class Reading(NamedTuple):
    """What is read off after each frame; arrays lead with (T, B) when scanned.

    Attributes:
      outputs: what `read` made of the network's outputs.
      macs: `(B,)` multiply-accumulates spent, dense convolutions included, gates not.
      firing: `{stage: (B,)}` share of the stage's multiply-accumulates spent.
      places: `(B, h, w)` share of the network's work done at each place, or None.
      fresh: `(B,)` bool, where a reset policy took a reference frame; None without policies.
      figures: named `(B,)` of the reset policies, such as `drift/<layer>`.
    """

    outputs: Any
    macs: jax.Array
    firing: dict[str, jax.Array]
    places: jax.Array | None
    fresh: jax.Array | None = None
    figures: dict[str, jax.Array] | None = None


Streamer = Callable[[Any, Any, Any], tuple[Any, Reading]]


@dataclasses.dataclass(frozen=True, eq=False)
class Runner:
    """A plan with what is read off it. Pure functions; `step` and `piece` are compiled.

    Attributes:
      plan: on any engine.
      read: makes of the network's outputs what should leave the device (joints, not heatmaps).
      places: size of the map of where work was done, None for no map.
      guard: reset policies, made for the plan; None for none.
      threads: of the native engine for a call, without a guard; 0 for as many as it has.
    """

    plan: Plan
    read: Callable[[Any], Any]
    places: tuple[int, int] | None = None
    guard: Guard | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        if self.guard is not None and self.guard.plan is not self.plan:
            raise ValueError("`guard` must be made for this plan: `Guard.make(plan, policies)`.")

    def init(self, streams: int | None = None) -> Carry:
        """What fresh streams start with; `step` and `piece` donate it."""
        state = self.plan.init_state(streams)
        return state if self.guard is None else (state, self.guard.init(streams))

    def reset(self, carry: Carry, streams: jax.Array | None = None) -> Carry:
        """What comes before a reference frame of the given streams `(B,)` (default all)."""
        if self.guard is None:
            return self.plan.reset(carry, streams)
        state, memory = carry
        return self.plan.reset(state, streams), memory

    def advance(self, constants: Constants, carry: Carry, x: Any) -> tuple[Carry, Reading]:
        """One frame; not compiled."""
        if self.guard is None:
            y, carry, masks = self.plan.apply(carry, x, constants, threads=self.threads)
            return carry, self._reading(y, masks)
        state, memory = carry
        y, state, memory, report = self.guard.advance(constants, state, memory, x)
        seen = self._reading(y, report.masks)
        return (state, memory), seen._replace(fresh=report.fresh, figures=report.figures)

    def _reading(self, outputs: Any, masks: Any) -> Reading:
        table, fired = self.plan.table, self.plan.fired(masks)
        where = None if self.places is None else macs.firing_map(table, fired, self.places)
        spent, stages = macs.spent_total(table, fired), macs.stage_firing(table, fired)
        return Reading(self.read(outputs), spent, stages, where)

    @functools.cached_property
    def step(self) -> Streamer:
        """Jitted `(constants, carry, frame) -> (carry, reading)`; arrays lead with B."""
        return jax.jit(self._canonical(self.advance), donate_argnums=1)

    def step_of(self, pick: Callable[[Reading], Any]) -> Streamer:
        """`step` that gives `pick(reading)` alone: what it leaves out is not computed."""

        def run(constants: Constants, carry: Carry, x: Any) -> tuple[Carry, Any]:
            carry, reading = self.advance(constants, carry, x)
            return carry, pick(reading)

        return jax.jit(self._canonical(run), donate_argnums=1)

    @functools.cached_property
    def piece(self) -> Streamer:
        """Jitted `(constants, carry, frames) -> (carry, readings)`; arrays lead with (T, B).

        Pieces follow each other as if they were one: split a stream anywhere. A new T compiles
        anew.
        """

        def run(constants: Constants, carry: Carry, frames: Any) -> tuple[Carry, Reading]:
            return jax.lax.scan(lambda c, x: self.advance(constants, c, x), carry, frames)

        return jax.jit(self._canonical(run), donate_argnums=1)

    def _canonical(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """XLA's convolutions in the layout this backend is fast in; the native engine has none."""
        return fn if self.plan.engine == "native" else for_this_backend(fn)


def make_streamer(
    net: SkipNet | Plan,
    table: macs.Table,
    read: Callable[[Any], Any],
    places: tuple[int, int] | None = None,
    guard: Guard | None = None,
) -> Streamer:
    """`Runner.piece` of a plan, or of a network run as it is whose parameters may change.

    Args:
      net: a plan, or a skipped network: `net.apply` runs it, with the parameters of each call.
      table: its table.
      read: makes of the network's outputs what should leave the device (joints, not heatmaps).
      places: size of the map of where work was done, None for no map.
      guard: reset policies, made for `net`; the state is then the pair of the network's and
        `guard.init()`.

    Returns:
      A function of params (a plan's constants), state (donated) and frames, whose arrays are
      `(T, B, ...)`, that returns the state and readings. A new T compiles anew.
    """
    if isinstance(net, Plan):
        return Runner(net, read, places, guard).piece
    runners: dict[Any, Streamer] = {}

    def run(params: Any, state: Any, frames: Any) -> tuple[Any, Reading]:
        # The shape of a frame is known with the first frames only.
        x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), frames)
        made_for = str(x)
        if made_for not in runners:
            plan = plain_plan(net, shapes_of(params), x) if guard is None else guard.plan
            plan = dataclasses.replace(plan, table=table) if guard is None else plan
            runners[made_for] = Runner(plan, read, places, guard).piece
        return runners[made_for](params, state, frames)

    return run


def __getattr__(name: str) -> Any:
    """Names of 0.1.0."""
    return attribute(__name__, name)
