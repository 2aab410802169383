"""A traced inference network folded into the few operations a fast engine runs.

`build` traces `fn(variables, x)`, evaluates everything that does not depend on the frame (batch
norm statistics, weight standardisation, constants), recognises the remaining equations as nodes,
and folds: affine maps into the convolution before them, activations and residual adds into what
produces their input. An equation without a rule becomes an `OtherNode` that carries it as it was.

Tensors of nodes are `(B, *spatial, C)`, or `(B, C)` after a mean over space.
"""

from collections.abc import Callable
from typing import Any

import jax

# All of them are part of this face: `fold.ConvNode`.
from skipconv_jax.program.fold.nodes import *  # noqa: F403
from skipconv_jax.program.fold.nodes import Graph
from skipconv_jax.program.fold.reader import Reader
from skipconv_jax.program.fold.rewrites import REWRITES, drop_unused
from skipconv_jax.program.fold.rules import RULES
from skipconv_jax.program.fold.tensors import NCHW, NHWC


def _read(fn: Callable[..., Any], variables: Any, x: Any) -> Graph:
    """The graph with frames as channels first where their shape says so, else channels last."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(x)]
    first = any(len(s) == 4 and s[1] <= 4 < s[3] for s in shapes)
    return Reader(variables, RULES, NCHW if first else NHWC).read(fn, x)


def build(fn: Callable[..., Any], variables: Any, x: Any) -> Graph:
    """Traces `fn(variables, x)` with concrete variables and folds it.

    Args:
      fn: pure function.
      variables: pytree of concrete arrays.
      x: frame; only shapes and dtypes are read.
    """
    graph = _read(fn, variables, x)
    for rewrite in REWRITES:
        drop_unused(graph)
        rewrite(graph)
    drop_unused(graph)
    return graph
