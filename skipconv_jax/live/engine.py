"""One plan, many streams: every stream's state in one place, stepped when it has a frame.

A stream is stepped alone, with its state donated to the call: nothing of it is copied. A batch
would have to gather and scatter the states of those streams that have a frame, many megabytes each,
and answer when its slowest frame is in.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from skipconv_jax import macs
from skipconv_jax.live.regions import Ignore
from skipconv_jax.plans import compile_plan
from skipconv_jax.streaming.runner import Reading, Runner
from skipconv_jax.tasks import Experiment

CELL = 16  # input pixels per side of a cell of the map of fired blocks


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a frame gave.

    Attributes:
      row: what the network says, in frame pixels; values JSON takes.
      share: of the dense network's multiply-accumulates that were spent.
      gmac: spent, 10^9.
      ms: what the call took.
      fired: `(h, w)` in [0, 1] over the frame, share of the work done at each place; or None.
    """

    row: dict[str, Any]
    share: float
    gmac: float
    ms: float
    fired: np.ndarray | None = None


class _Few(NamedTuple):
    """What of a reading leaves the device."""

    outputs: Any
    macs: jax.Array
    places: jax.Array | None

    @staticmethod
    def of(reading: Reading) -> "_Few":
        return _Few(reading.outputs, reading.macs, reading.places)


class Engine(Protocol):
    """What the service asks for; one call per stream at a time, several streams at once."""

    def run(self, stream: str, image: np.ndarray, fresh: bool, ignore: Ignore) -> Answer:
        """A frame `(H, W, 3)` uint8 of a stream; where `fresh`, it becomes a reference frame."""
        ...

    def state_bytes(self, stream: str) -> int:
        """Bytes of state the stream holds."""
        ...

    def forget(self, stream: str) -> None:
        """Gives its state up; its next frame computes everything."""
        ...


class PlanEngine:
    """The network of an experiment on one plan.

    Args:
      experiment: network, task and view.
      params: `{'model': variables, 'gates': gates}`.
      engine: as for `compile_plan`.
      threads: of one call.
      min_score: answers with less confidence are left out.
      fired: make the map of fired blocks.
    """

    def __init__(
        self,
        experiment: Experiment,
        params: dict[str, Any],
        *,
        engine: str = "auto",
        threads: int = 1,
        min_score: float = 0.3,
        fired: bool = True,
    ) -> None:
        frame = experiment.frame()
        net = experiment.traced_net(params["model"])
        plan = compile_plan(net, params, frame, engine=engine, keep_outputs=True)
        self.table, self.why = plan.table, f"{plan.engine}: {plan.why}"
        self._view = experiment.view(None, min_score)
        height, width = experiment.size
        cells = (-(-height // CELL), -(-width // CELL))
        two = any(
            row.conv and row.conv.rank == 2 and row.calls == 1 for row in plan.table.skipped()
        )
        places = cells if fired and two else None
        self._size, self._places = (height, width), places
        self._runner = Runner(plan, experiment.read, places, threads=threads)
        self._carries: dict[str, Any] = {}
        # Compiled, and run once, before a camera is connected: no frame waits for it.
        black = np.zeros(frame.shape, np.uint8)
        # One reading per layer would cost more than a still frame does.
        step: Any = self._runner.step_of(_Few.of)
        self._step = step.lower(plan.constants, self._runner.init(), black).compile()
        jax.block_until_ready(self._step(plan.constants, self._runner.init(), black))

    def run(self, stream: str, image: np.ndarray, fresh: bool, ignore: Ignore) -> Answer:
        """See `Engine`."""
        affine = self._view.affine(image)
        x = self._view.inputs([image], affine)
        x = ignore(x, affine, image.shape, fresh or stream not in self._carries)
        carry = self._carries.pop(stream, None)
        if carry is None:
            carry = self._runner.init()
        elif fresh:
            carry = self._runner.reset(carry)
        began = time.perf_counter()
        carry, reading = self._step(self._runner.plan.constants, carry, x)
        reading = jax.device_get(reading)
        ms = (time.perf_counter() - began) * 1e3
        self._carries[stream] = carry
        row = self._view.row(jax.tree.map(lambda a: a[0], reading.outputs), affine, image.shape)
        spent = float(reading.macs[0])
        fired = None if reading.places is None else self._covering(reading.places[0], affine, image)
        return Answer(row, spent / self.table.macs, spent / macs.GIGA, ms, fired)

    def _covering(
        self, places: np.ndarray, affine: np.ndarray, image: np.ndarray
    ) -> np.ndarray | None:
        """The part of the map that the frame covers: inputs may be padded beyond it."""
        edge = affine @ np.asarray([image.shape[1], image.shape[0], 1.0])
        across, down = (
            max(1, min(round(float(part) / side * count), count))
            for part, side, count in zip(edge, self._size[::-1], places.shape[::-1], strict=True)
        )
        return np.asarray(places[:down, :across])

    def state_bytes(self, stream: str) -> int:
        """See `Engine`."""
        return self._runner.plan.state_bytes() if stream in self._carries else 0

    def forget(self, stream: str) -> None:
        """See `Engine`."""
        self._carries.pop(stream, None)


def boxes(row: dict[str, Any]) -> Sequence[Sequence[float]]:
    """The boxes an answer holds; none of a task without any."""
    found: Sequence[Sequence[float]] = row.get("boxes", ())
    return found
