"""Training by several processes (`jax.distributed`): who does what, and what is said when one dies.

Every process runs the same program on its part of each batch. Under `jit` the parts are one global
batch: gradients and batch statistics are those of one process with all of it. The first process
alone writes metrics and holds the folder's lock; checkpoints are written by all (Orbax).
"""

import contextlib
import os
import sys
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

_HEARTBEAT = 30  # seconds of silence after which a process counts as gone
_ENDING = 10  # seconds that processes wait for each other at the end


class ProcessLost(RuntimeError):
    """Another process of the run is gone: its part of the batch is missing."""


def begin(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the other processes; before anything is computed.

    Args:
      coordinator: host and port of process 0; None where the cluster (Slurm, a TPU pod, Kubernetes)
        says all of it.
      count: of processes.
      index: of this one.

    Raises:
      ValueError: arguments that are not given together.
    """
    if len({coordinator is None, count is None, index is None}) > 1:
        raise ValueError(
            f"`coordinator` (={coordinator}), `processes` (={count}) and `process` (={index}) must "
            "be given together, or none of them where the cluster says who is who."
        )
    if count is not None and index is not None and not 0 <= index < count:
        raise ValueError(f"`process` (={index}) must be from 0 to `processes` - 1 (={count - 1}).")
    jax.distributed.initialize(
        coordinator,
        count,
        index,
        heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=_ENDING,
    )


def here() -> tuple[int, int]:
    """Index of this process, and how many there are."""
    return jax.process_index(), jax.process_count()


def first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def part(batch: int) -> int:
    """Clips that this process prepares of a batch.

    Raises:
      ValueError: the processes can't share it equally.
    """
    count = jax.process_count()
    if batch % count:
        raise ValueError(
            f"`batch` (={batch} clips) must be divisible by the {count} processes; change the "
            "phase's `batch`, or start another number of processes."
        )
    return batch // count


def together(name: str) -> None:
    """Waits for the other processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def named_loss(phase: str) -> Iterator[None]:
    """Says in plain words that another process is gone, where JAX's collectives fail for it.

    Raises:
      ProcessLost: instead of JAX's error, of several processes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        line = str(error).splitlines()[0][:200]
        raise ProcessLost(
            f"phase {phase!r} stopped: another of the {jax.process_count()} processes is gone or "
            f"out of reach ({line}). Start all of them again with --resume: the run goes on from "
            "its last checkpoint, with any number of processes that divides the batch."
        ) from error


def leave(error: ProcessLost) -> None:
    """Ends this process at once with the message: an orderly end would wait for the lost one."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(1)
