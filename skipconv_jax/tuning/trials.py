"""A skipped network run on one clip at any thresholds: what it costs and how far it is off."""

import copy
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax import macs
from skipconv_jax.ops.gates import GateParams
from skipconv_jax.plans import Plan, compile_plan
from skipconv_jax.program.canonical import for_this_backend
from skipconv_jax.transform import SkipNet

Loss = Callable[[Any, Any], tuple[jax.Array, jax.Array]]
"""`(outputs, dense outputs) -> (error, scale)`, `(B,)` each, of one frame."""

# Rounds of a clip that a time is the median of.
_ROUNDS = 3


class Trial(NamedTuple):
    """One setting of all gates on a clip, its reference frame left out.

    Attributes:
      macs: multiply-accumulates per frame and stream.
      loss: error over scale, both summed over frames and streams.
      firing: `(layers,)` share of output positions computed, in the order of `Trials.names`.
    """

    macs: float
    loss: float
    firing: np.ndarray


class Trials:
    """Runs one plan over one clip again and again; new thresholds compile nothing.

    Only numbers leave the run, so that a clip may be long. The dense network runs once.

    Args:
      net: the skipped network; its gates' own parameters are not used.
      variables: of the network.
      clip: `(T, B, ...)` frames of B streams, T >= 2.
      loss: of a frame.
      read: what of the outputs is kept for scores, see `outputs`; None keeps nothing.
      engine: that runs it, as for `compile_plan`.

    Raises:
      ValueError: a clip of one frame.
    """

    def __init__(
        self,
        net: SkipNet,
        variables: Any,
        clip: Any,
        loss: Loss,
        *,
        read: Callable[[Any], Any] | None = None,
        engine: str = "auto",
    ) -> None:
        self._loss, self._read = loss, read or (lambda y: ())
        first = jnp.asarray(clip[0])
        self.gates: dict[str, GateParams] = net.init_gates(variables, first, key=jax.random.key(0))
        params = {"model": variables, "gates": self.gates}
        self.plan: Plan = compile_plan(net, params, first, engine=engine)
        self.names = tuple(row.name for row in self.plan.table.skipped())

        def dense(v: Any, frames: Any) -> Any:
            return jax.lax.map(lambda x: net.fn(v, x), frames)

        self._dense_run = functools.partial(jax.jit(for_this_backend(dense)), variables)
        self._run = jax.jit(self._scan, static_argnames="reads")
        self._take(clip)

    def _take(self, clip: Any) -> None:
        if len(clip) < 2:
            raise ValueError(f"`clip` (of {len(clip)} frames) must have at least two.")
        self._clip = jnp.asarray(clip)
        self._dense = self._dense_run(self._clip)

    def on(self, clip: Any) -> "Trials":
        """The same network and compiled programs on another clip."""
        other = copy.copy(self)
        other._take(clip)
        return other

    @property
    def dense_macs(self) -> int:
        """Of the dense network, per frame and stream."""
        return self.plan.table.macs

    def __call__(self, gates: Mapping[str, Any]) -> Trial:
        """Runs gates with these parameters."""
        return self._trial(self._measured(gates, False)[0])

    def read(self, gates: Mapping[str, Any]) -> tuple[Trial, Any]:
        """The same, with what `read` kept of every frame, arrays `(T, B, ...)`."""
        numbers, seen = self._measured(gates, True)
        return self._trial(numbers), seen

    @property
    def dense_outputs(self) -> Any:
        """Of every frame, `(T, B, ...)`."""
        return self._dense

    def dense(self) -> Any:
        """What `read` keeps of the dense network's outputs."""
        return jax.device_get(jax.jit(jax.vmap(self._read))(self._dense))

    def milliseconds(self, gates: Mapping[str, Any], rounds: int = _ROUNDS) -> float:
        """Of the plan alone, per frame of all streams after the first; the median of rounds."""
        constants, times = self.plan.with_gates(gates), []
        for _ in range(rounds):
            state, took = self.plan.init_state(), []
            for x in self._clip:
                jax.block_until_ready((state, x))
                began = time.perf_counter()
                y, state, _ = self.plan.step(state, x, constants)
                jax.block_until_ready((y, state))
                took.append(time.perf_counter() - began)
            times.append(took[1:])
        return 1e3 * float(np.median(times, axis=0).mean())

    def whole_milliseconds(self, frames: int = 8) -> float:
        """Of a frame that is computed whole, all streams: the median of some reference frames."""
        took = []
        for x in self._clip[:frames]:
            state = jax.block_until_ready(self.plan.init_state())
            began = time.perf_counter()
            y, state, _ = self.plan.step(state, x)
            jax.block_until_ready((y, state))
            took.append(time.perf_counter() - began)
        # The first call compiles.
        return 1e3 * float(np.median(took[1:]))

    def _measured(self, gates: Mapping[str, Any], reads: bool) -> tuple[Any, Any]:
        state, constants = self.plan.init_state(), self.plan.with_gates(gates)
        found: tuple[Any, Any] = jax.device_get(
            self._run(constants, state, (self._clip, self._dense), reads=reads)
        )
        return found

    def _scan(self, constants: Any, state: Any, clip: Any, reads: bool) -> Any:
        table = self.plan.table

        def step(state: Any, frame: Any) -> Any:
            x, dense = frame
            y, state, masks = self.plan.apply(state, x, constants)
            fired = self.plan.fired(masks)
            shares = macs.firing(table, fired)
            numbers = (
                jnp.stack([shares[name].mean() for name in self.names]),
                macs.spent_total(table, fired).mean(),
                *self._loss(y, dense),
            )
            return state, (numbers, self._read(y) if reads else ())

        return jax.lax.scan(step, state, clip)[1]

    def _trial(self, numbers: Any) -> Trial:
        firing, spent, error, scale = (np.asarray(part, np.float64)[1:] for part in numbers)
        whole = scale.sum()
        # Nothing to be found, and nothing found: no loss. Something found there is all wrong.
        loss = error.sum() / whole if whole else (math.inf if error.sum() else 0.0)
        return Trial(float(spent.mean()), float(loss), firing.mean(axis=0))


def thresholds(names: Any, values: Any) -> dict[str, GateParams]:
    """Parameters of norm gates: one number for all, or one each in the order of the names."""
    spread = np.broadcast_to(np.asarray(values, np.float32), (len(names),))
    return {name: {"threshold": value} for name, value in zip(names, spread, strict=True)}
