"""The training loop of one phase, from the first step (or the last checkpoint) to the last one."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import optax

from skipconv_jax.training import processes
from skipconv_jax.training.checkpoints import Checkpoints
from skipconv_jax.training.metrics import JsonLines, Progress, TensorBoard, Writer, Writers
from skipconv_jax.training.run_lock import run_lock
from skipconv_jax.training.step import Figures, LossFn, TrainState, culprits, make_step

Tree = Any


class Batches(Protocol):
    """A deterministic, endless stream of batches whose position can be saved."""

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]: ...

    def __next__(self) -> Mapping[str, np.ndarray]:
        """Next batch; every array is (B, T, ...)."""
        ...

    def get_state(self) -> Tree:
        """Position in the stream, JSON-serialisable."""
        ...

    def set_state(self, state: Tree) -> None:
        """Returns to a saved position."""
        ...


class TrainingDiverged(RuntimeError):
    """A loss, gradient or statistic is not finite; the message names the step and the culprit."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of training, ready to run.

    Attributes:
      name: shown in the progress line; the phase's files go to `<workdir>/<name>/`.
      steps: steps in all.
      loss_fn: loss of a batch.
      optimizer: the optimiser of `{'model': ..., 'gates': ...}`.
      initial: makes the state before the first step.
      batches: makes the stream of batches.
    """

    name: str
    steps: int
    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    initial: Callable[[], TrainState]
    batches: Callable[[], Batches]


@dataclasses.dataclass(frozen=True)
class Options:
    """How a phase is run; none of these changes what it computes.

    Attributes:
      log_every: steps between metric lines.
      checkpoint_every: steps between checkpoints; the last step always writes one.
      keep: checkpoints kept.
      tensorboard: write TensorBoard events as well.
      resume: continue from the newest checkpoint; without it, a phase that has one is an error.
      newest_whole: where the newest checkpoint is damaged, continue from the newest whole one.
    """

    log_every: int = 20
    checkpoint_every: int = 200
    keep: int = 2
    tensorboard: bool = False
    resume: bool = False
    newest_whole: bool = False


def run(phase: Phase, workdir: Path, seed: int, options: Options) -> TrainState:
    """Trains one phase and returns its last state.

    Raises:
      TrainingDiverged: something is not finite; names the step and the culprit.
      ValueError: the folder holds checkpoints and `resume` was not asked for.
      LockedError: another process trains in the folder.
      ProcessLost: another process of this run is gone.
    """
    # One of several processes holds the folder for all of them.
    lock = run_lock(workdir / phase.name) if processes.first() else contextlib.nullcontext()
    with lock, processes.named_loss(phase.name):
        processes.together(f"begin {phase.name}")
        return _run(phase, workdir, seed, options)


def _run(phase: Phase, workdir: Path, seed: int, options: Options) -> TrainState:
    folder = workdir / phase.name
    whole = options.resume and options.newest_whole
    opened = Checkpoints(folder / "checkpoints", options.keep, whole)
    # Closed on errors and Ctrl-C too: a checkpoint that is being written is finished first.
    with contextlib.closing(opened) as checkpoints:
        if checkpoints.latest is not None and not options.resume:
            raise ValueError(
                f"`workdir` (={workdir}) must not hold checkpoints of phase {phase.name!r}; pass "
                "--resume to continue them, or another --workdir."
            )
        state, batches = phase.initial(), phase.batches()
        if checkpoints.latest is not None:
            state, position = checkpoints.restore(state)
            batches.set_state(position)
        with _writers(phase, folder, int(state.step), options) as writers:
            return _steps(phase, state, batches, seed, options, checkpoints, writers)


def _writers(phase: Phase, folder: Path, start: int, options: Options) -> Writers:
    if not processes.first():
        return Writers()
    writers: list[Writer] = [
        JsonLines(folder / "metrics.jsonl", start),
        Progress(phase.name, start, phase.steps),
    ]
    if options.tensorboard:
        writers.append(TensorBoard(folder / "tensorboard", start))
    return Writers(*writers)


def _steps(
    phase: Phase,
    state: TrainState,
    batches: Batches,
    seed: int,
    options: Options,
    checkpoints: Checkpoints,
    writers: Writers,
) -> TrainState:
    state, put, everywhere = _place(state)
    train_step = make_step(phase.loss_fn, phase.optimizer, everywhere)
    key = jax.random.key(seed)
    failed = _Watch(phase, key)
    since = time.monotonic()
    for step in range(int(state.step) + 1, phase.steps + 1):
        batch = put(next(batches))
        state, figures = train_step(state, batch, key)
        failed.look(step, state, batch)
        if step % options.log_every == 0 or step == phase.steps:
            failed.settle(state)
            writers.write(step, _flat(figures) | {"seconds": time.monotonic() - since})
            since = time.monotonic()
        if step % options.checkpoint_every == 0 or step == phase.steps:
            # Never save what a non-finite step has touched.
            failed.settle(state)
            checkpoints.save(step, state, batches.get_state())
    checkpoints.wait()
    return state


class _Watch:
    """Looks for non-finite steps one step late, so that the host never waits for the device.

    A failed step changes nothing but `healthy`, nor does any step after it: the state at hand is
    the one the failed step started from, and only its batch has to be kept.
    """

    def __init__(self, phase: Phase, key: jax.Array) -> None:
        self._phase, self._key = phase, key
        self._pending: list[tuple[int, jax.Array, Any]] = []

    def look(self, step: int, state: TrainState, batch: Any) -> None:
        # A copy: the next step donates the state and its buffers.
        self._pending.append((step, state.healthy.copy(), batch))
        if len(self._pending) > 1:
            self._check(state, *self._pending.pop(0))

    def settle(self, state: TrainState) -> None:
        while self._pending:
            self._check(state, *self._pending.pop(0))

    def _check(self, state: TrainState, step: int, healthy: jax.Array, batch: Any) -> None:
        if bool(healthy):
            return
        found = culprits(self._phase.loss_fn, state, batch, self._key)
        named = ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
        raise TrainingDiverged(
            f"phase {self._phase.name!r} stopped at step {step}: not finite: {named or 'loss'}; "
            "lower the learning rate, or look at the named input or weight. The last checkpoint is "
            "from before this step."
        )


def _flat(figures: Figures) -> dict[str, float]:
    named = {"loss": figures.loss, **figures.terms, **figures.extra}
    return {name: float(value) for name, value in jax.device_get(named).items()}


def _place(
    state: TrainState,
) -> tuple[TrainState, Callable[[Mapping[str, np.ndarray]], Any], jax.sharding.Sharding]:
    """The state on every device, a function that splits a batch's first axis over them, and where
    the state is.

    Under `jit` a batch sharded over devices is one global batch: gradients and batch statistics
    are those of the whole batch. Each process puts the part that it prepared.
    """
    devices = jax.devices()
    mesh = jax.make_mesh((len(devices),), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))

    def put(batch: Mapping[str, np.ndarray]) -> Any:
        size = len(next(iter(batch.values())))
        if size % jax.local_device_count():
            raise ValueError(
                f"`batch` (={size * jax.process_count()} clips) must be divisible by the "
                f"{len(devices)} devices; change the phase's `batch`."
            )
        if jax.process_count() == 1:
            return jax.device_put(dict(batch), spread)
        return {
            key: jax.make_array_from_process_local_data(spread, value)
            for key, value in batch.items()
        }

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(state, everywhere), put, everywhere
