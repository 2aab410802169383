"""Where a native plan's time goes, operation by operation, and what the machine could do."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax import native
from skipconv_jax.native.profiling import Operation, operations
from skipconv_jax.plans.native import NativePlan


@dataclasses.dataclass(frozen=True)
class Profile:
    """Operations of a plan, and what each took per frame.

    Attributes:
      operations: in the order they run.
      seconds: `(frames, operations)`.
      positions: output positions computed, `(frames, operations)`.
      steps: seconds of whole calls, `(frames,)`: dispatch and what XLA runs included.
      streams: of one call.
    """

    operations: tuple[Operation, ...]
    seconds: np.ndarray
    positions: np.ndarray
    steps: np.ndarray
    streams: int

    def macs(self) -> np.ndarray:
        """Multiply-accumulates done per frame, `(operations,)`."""
        return self.positions.mean(0) * np.asarray([op.macs for op in self.operations])

    def bytes(self) -> np.ndarray:
        """Bytes of inputs and outputs of what was computed per frame, each value once."""
        moved = np.asarray([op.read + op.written for op in self.operations])
        return self.positions.mean(0) * moved

    def typical(self) -> int:
        """The frame whose time is the median."""
        order = np.argsort(self.seconds.sum(1), kind="stable")
        return int(order[len(order) // 2])


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What the machine does at best, with the engine's threads.

    Attributes:
      macs: multiply-accumulates per second, float32, of XLA's product of two large matrices.
      bytes: per second, of a copy in memory (read and write counted).
    """

    macs: float
    bytes: float


def profile(plan: NativePlan, frames: Iterable[Any], constants: Any = None) -> Profile:
    """Plays frames on a fresh state; the first, which computes everything, is left out.

    Args:
      plan: of the native engine.
      frames: as the plan takes them, at least two.
      constants: of the plan, such as those of `with_gates`.

    Raises:
      ValueError: another plan, or fewer than two frames.
    """
    if not isinstance(plan, NativePlan):
        raise ValueError(
            f"`plan` (={plan.engine}: {plan.why}) must be of the native engine, the only one that "
            "times its operations; use jax.profiler for the others."
        )
    found = tuple(op for program in plan.programs for op in operations(program))
    state, seconds, positions, steps = plan.init_state(), [], [], []
    with native.profile() as timer:
        for frame in frames:
            jax.block_until_ready((state, frame))
            timer.read()
            began = time.perf_counter()
            y, state, _ = plan.step(state, frame, constants)
            jax.block_until_ready((y, state))
            steps.append(time.perf_counter() - began)
            read = timer.read()
            seconds.append(read[:, 0])
            positions.append(read[:, 1])
    if len(steps) < 2:
        raise ValueError(f"`frames` (={len(steps)}) must be at least two: the first is left out.")
    return Profile(
        found,
        np.asarray(seconds[1:]),
        np.asarray(positions[1:]),
        np.asarray(steps[1:]),
        plan.streams,
    )


def ceilings(size: int = 1024, megabytes: int = 128) -> Ceilings:
    """Measures the machine, in a second or so.

    Args:
      size: of the square matrices that are multiplied.
      megabytes: of the array that is copied, more than caches hold.
    """
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda m: m @ m)
    source = np.ones(megabytes << 18, np.float32)
    target = np.empty_like(source)
    best = _shortest(lambda: jax.block_until_ready(product(a)))
    copy = _shortest(lambda: np.copyto(target, source))
    return Ceilings(size**3 / best, 2.0 * source.nbytes / copy)


def _shortest(run: Callable[[], object], rounds: int = 7) -> float:
    run()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(sorted(times)[:3])
