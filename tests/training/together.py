"""One of several processes that train the toy network: `together.py PORT COUNT INDEX FOLDER STEPS`.

A test starts it; `slow` as a last word leaves time to kill one of them, between checkpoints.
"""

import sys
import time
from pathlib import Path

from skipconv_jax.training import processes
from skipconv_jax.training.loop import Options, Phase, run
from tests.training import toy


class Part(toy.Batches):
    """This process's part of each batch."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def __next__(self):
        time.sleep(self.seconds)
        batch, (index, _) = super().__next__(), processes.here()
        size = processes.part(toy.BATCH)
        return {key: value[index * size : (index + 1) * size] for key, value in batch.items()}


def phase(steps):
    """Under Adam a bias before batch norm, whose gradient is rounding alone, moves by its sign."""
    return toy.phase(steps, optimizer="sgd", lr=0.05)


def main(port, count, index, folder, steps, *rest):
    processes.begin(f"127.0.0.1:{port}", int(count), int(index))
    made = phase(int(steps))
    batches = lambda: Part(0.1 if rest else 0)  # noqa: E731
    made = Phase(made.name, made.steps, made.loss_fn, made.optimizer, made.initial, batches)
    options = Options(log_every=1, checkpoint_every=1000 if rest else 3, resume=True)
    try:
        run(made, Path(folder), seed=7, options=options)
    except processes.ProcessLost as error:
        processes.leave(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
