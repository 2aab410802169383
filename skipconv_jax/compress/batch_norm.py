"""Batch-norm statistics estimated anew, after channels were gated or removed."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

Tree = Any
IMAGES = 48  # what the paper takes for L0


def reestimate(
    forward: Callable[..., tuple[Any, Tree]], variables: Tree, frames: jax.Array
) -> Tree:
    """Variables whose running statistics are those of one batch.

    Args:
      forward: the Flax network in training, `(variables, frames) -> (outputs, statistics)`.
      variables: `{'params': ..., 'batch_stats': ...}`.
      frames: `(N, H, W, C)`; the paper takes 48 test images.

    Returns:
      The variables with the batch's mean and variance in every batch norm.
    """

    def run(variables: Tree, frames: jax.Array) -> Tree:
        with nn.intercept_methods(_forget):
            return forward(variables, frames)[1]

    return {**variables, **jax.jit(run)(variables, frames)}


def _forget(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    if isinstance(context.module, nn.BatchNorm):
        # The share of the old statistics; this instance lives for one trace.
        object.__setattr__(context.module, "momentum", 0.0)
    return call(*args, **kwargs)
