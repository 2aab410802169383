"""Channels removed for good: smaller variables, and the unmodified network run on them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from skipconv_jax.compress.channels import Group
from skipconv_jax.compress.kernels import Path, get, replaced
from skipconv_jax.compress.l0 import LogAlphas, gated, kept, mean_gates

Tree = Any


@dataclasses.dataclass(frozen=True)
class Pruning:
    """Which channels of a Flax network stay; made by `pruning`.

    Attributes:
      entries: of each group, the group and the channels that stay.
    """

    entries: tuple[tuple[Group, tuple[int, ...]], ...]

    def variables(self, dense: Tree) -> Tree:
        """The dense network's variables without the removed channels."""
        for group, channels in self.entries:
            at = np.asarray(channels)
            for path in (group.source, *group.vectors):
                dense = replaced(dense, path, jnp.take(get(dense, path), at, axis=-1))
            for path in group.readers:
                dense = replaced(dense, path, jnp.take(get(dense, path), at, axis=-2))
        return dense

    def wrap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The network `fn(variables, x, *args)` on pruned variables: skips, trains and serves.

        `fn` may be any function that runs the Flax network, in training or in inference; each
        pruned `nn.Conv` (or `nn.ConvTranspose`) is told its new number of features as it is called.
        """
        widths = {group.source[1:-1]: len(channels) for group, channels in self.entries}
        interceptor = functools.partial(_resize, widths)

        def pruned(variables: Tree, x: Any, *args: Any) -> Any:
            with nn.intercept_methods(interceptor):
                return fn(variables, x, *args)

        return pruned


def _resize(widths: Mapping[Path, int], call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    module = context.module
    if isinstance(module, nn.Conv | nn.ConvTranspose) and context.method_name == "__call__":
        width = widths.get(module.path)
        if width is not None:
            # Modules are frozen for their users' sake; this instance lives for one trace.
            object.__setattr__(module, "features", width)
    return call(*args, **kwargs)


def pruning(groups: Sequence[Group], log_alphas: LogAlphas) -> Pruning:
    """The pruning that trained L0 gates stand for."""
    channels = kept(log_alphas)
    return Pruning(tuple((g, tuple(int(i) for i in channels[g.name])) for g in groups))


def prune(groups: Sequence[Group], log_alphas: LogAlphas, variables: Tree) -> tuple[Pruning, Tree]:
    """Gates of inference multiplied into the kernels, closed channels removed.

    Args:
      groups: from `find_groups`.
      log_alphas: trained.
      variables: of the dense network.

    Returns:
      The pruning and its variables; the pruned network computes what the gated one does. (A group
      whose gates are all closed keeps one channel, which its readers multiply by zero.)
    """
    cut = pruning(groups, log_alphas)
    return cut, cut.variables(gated(variables, groups, mean_gates(log_alphas)))
