"""A network, a task and data small enough to train within a test."""

import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from skipconv_jax import skip
from skipconv_jax.ops import GumbelGate
from skipconv_jax.training.loop import Options, Phase, run
from skipconv_jax.training.optimizer import optimizer
from skipconv_jax.training.step import create_state, dense_loss, gated_loss

SIZE, LENGTH, BATCH = 8, 3, 4


class Net(nn.Module):
    """Two convolutions with batch norm between them."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), name="first")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))
        return nn.Conv(1, (3, 3), name="second")(x)


class Task:
    """Regression of a map."""

    def losses(self, outputs, targets):
        return {"error": ((outputs - targets["map"]) ** 2).mean()}


class Batches:
    """Deterministic batches: the n-th depends on n alone."""

    def __init__(self, poison: int = -1):
        self.position, self.poison = 0, poison

    def __iter__(self):
        return self

    def __next__(self):
        rng = np.random.default_rng(self.position)
        frames = rng.normal(size=(BATCH, LENGTH, SIZE, SIZE, 2)).astype(np.float32)
        if self.position == self.poison:
            frames[0, 0, 0, 0, 0] = np.nan
        self.position += 1
        return {"frames": frames, "map": frames[..., :1] - 0.5 * frames[..., 1:]}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def recipe(**changes):
    values = {"lr": 1e-2, "schedule": "cosine", "milestones": (0.5,), "warmup": 0, "clip_norm": 0.0}
    rule = {"optimizer": "adam", "momentum": 0.9, "weight_decay": 0.0, "gate_lr_scale": 3.0}
    return ConfigDict({**values, **rule, **changes})


def forward(variables, frames):
    outputs, stats = Net().apply(variables, frames, train=True, mutable=["batch_stats"])
    return outputs, dict(stats)


def frame():
    return jnp.zeros((1, SIZE, SIZE, 2))


def gated_net():
    return skip(forward, gate=GumbelGate(block=2))


def gated(beta: float = 0.1, **kwargs):
    net = gated_net()
    variables = Net().init(jax.random.key(0), frame())
    params, _ = net.init(variables, frame(), key=jax.random.key(1))
    loss = gated_loss(net, net.table(variables, frame()), Task(), beta, **kwargs)
    return loss, variables, params["gates"]


def phase(steps: int, kind: str = "gated", poison: int = -1, **changes) -> Phase:
    opt = optimizer(recipe(**changes), steps)
    loss, variables, gates = gated()
    if kind == "dense":
        loss, gates = dense_loss(forward, Task()), {}
    initial = lambda: create_state(variables, gates, opt)  # noqa: E731  (as short as it gets)
    return Phase(kind, steps, loss, opt, initial, lambda: Batches(poison))


if __name__ == "__main__":
    # Run by the test that kills it: slow on purpose, so that the kill hits the middle.
    workdir, steps, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume"

    class Slow(Batches):
        def __next__(self):
            time.sleep(0.05)
            return super().__next__()

    slow = phase(steps)
    slow = Phase(slow.name, slow.steps, slow.loss_fn, slow.optimizer, slow.initial, Slow)
    run(slow, workdir, seed=7, options=Options(log_every=1, checkpoint_every=3, resume=resume))
