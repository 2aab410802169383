r"""L0 channel pruning with hard-concrete gates (Louizos et al., ICLR 2018).

One gate z in [0, 1] per output channel of a convolution, where only convolutions read the channel
(`channels.find_groups`). With u ~ U(0, 1),

    z = clip(sigmoid((log u - log(1 - u) + log a) / beta) (zeta - gamma) + gamma, 0, 1)

in training and without the noise term and without beta in inference; beta = 2/3, gamma = -0.1,
zeta = 1.1. The penalty is the expected cost: P(z > 0) = sigmoid(log a - beta log(-gamma / zeta)),
each convolution weighted by its multiply-accumulates.

A gate multiplies what the readers of its channel take in, which is their kernels' input axis: z = 0
removes the channel exactly, whatever stands between (bias, batch norm, activation).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.compress.channels import Group
from skipconv_jax.compress.kernels import Kernel, get, replaced
from skipconv_jax.training.step import Figures, LossFn, join

Tree = Any
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
LogAlphas = Mapping[str, jax.Array]
Forward = Callable[..., tuple[Any, Tree]]


def init_gates(groups: Sequence[Group], log_alpha: float = 2.5) -> dict[str, jax.Array]:
    """`{name: (C,)}` log a; 2.5 starts with 98 % of the channels open."""
    return {g.name: jnp.full((g.channels,), log_alpha, jnp.float32) for g in groups}


def sample(log_alphas: LogAlphas, rng: jax.Array) -> dict[str, jax.Array]:
    """One draw of every gate, `{name: (C,)}` in [0, 1], differentiable."""
    keys = jax.random.split(rng, max(len(log_alphas), 1))
    return {
        name: _stretch((jax.random.logistic(key, log_a.shape, log_a.dtype) + log_a) / BETA)
        for key, (name, log_a) in zip(keys, sorted(log_alphas.items()), strict=True)
    }


def mean_gates(log_alphas: LogAlphas) -> dict[str, jax.Array]:
    """The gates of inference, `{name: (C,)}` in [0, 1]."""
    return {name: _stretch(log_a) for name, log_a in log_alphas.items()}


def _stretch(logits: jax.Array) -> jax.Array:
    return jnp.clip(jax.nn.sigmoid(logits) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def probability_open(log_alpha: jax.Array) -> jax.Array:
    """P(z > 0) of each gate."""
    return jax.nn.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def expected_share(
    log_alphas: LogAlphas, groups: Sequence[Group], kernels: Mapping[str, Kernel], total: int
) -> jax.Array:
    """Expected multiply-accumulates by those of the dense network: the penalty, differentiable.

    A convolution costs in proportion to its open inputs times its open outputs.

    Args:
      log_alphas: `{name: (C,)}`.
      groups: from `find_groups`.
      kernels: from `find_kernels`.
      total: multiply-accumulates of the dense network.
    """
    shares: dict[Any, list[jax.Array]] = {}
    for group in groups:
        share = probability_open(log_alphas[group.name]).mean()
        for path in (group.source, *group.readers):
            shares.setdefault(path, []).append(share)
    spent = jnp.float32(1.0)
    for kernel in kernels.values():
        part = jnp.float32(1.0)
        for share in shares.get(kernel.path, []):
            part = part * share
        spent = spent - (1 - part) * (kernel.macs / total)
    return spent


def gated(params: Tree, groups: Sequence[Group], gates: Mapping[str, jax.Array]) -> Tree:
    """Variables whose channels count z-fold: the readers' kernels are multiplied by the gates."""
    for group in groups:
        z = gates[group.name]
        for path in group.readers:
            kernel = get(params, path)
            shaped = z.astype(kernel.dtype).reshape((1,) * (kernel.ndim - 2) + (-1, 1))
            params = replaced(params, path, kernel * shaped)
    return params


def l0_loss(
    forward: Forward,
    task: Any,
    groups: Sequence[Group],
    kernels: Mapping[str, Kernel],
    total: int,
    weight: float,
) -> LossFn:
    """Loss of the network with sampled gates, plus `weight` times the expected share of its cost.

    The gates' log a are `weights['gates']`, so that `make_step` and the loop train them.

    Args:
      forward: `(variables, frames (N, H, W, C)) -> (outputs, new statistics)`.
      task: gives the loss terms.
      groups: from `find_groups`.
      kernels: from `find_kernels`.
      total: multiply-accumulates of the dense network.
      weight: lambda of the penalty.
    """

    def loss_fn(weights: dict[str, Tree], stats: Tree, batch: Any, rng: jax.Array) -> Any:
        images = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), dict(batch))
        frames = images.pop("frames")
        variables = join(weights["model"], stats)
        variables = gated(variables, groups, sample(weights["gates"], rng))
        outputs, stats = forward(variables, frames)
        terms = dict(task.losses(outputs, images))
        share = expected_share(weights["gates"], groups, kernels, total)
        terms["l0"] = weight * share
        loss = jnp.stack(list(terms.values())).sum()
        return loss, (Figures(loss, terms, {"macs_share": share}), stats)

    return loss_fn


def kept(log_alphas: LogAlphas) -> dict[str, np.ndarray]:
    """Channels that stay, `{name: indices}`: gates above zero, at least the largest one."""
    indices = {}
    for name, z in mean_gates(log_alphas).items():
        values = np.asarray(z)
        open_ = np.flatnonzero(values > 0)
        indices[name] = open_ if open_.size else np.array([int(np.argmax(log_alphas[name]))])
    return indices
