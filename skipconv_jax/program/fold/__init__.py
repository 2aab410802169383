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
from skipconv_jax.program.fold.quantised.nodes import *  # noqa: F403
from skipconv_jax.program.fold.quantised.recognise import merge_tables, recognise, unrounded
from skipconv_jax.program.fold.reader import Calls, Reader
from skipconv_jax.program.fold.rewrites import REWRITES, drop_unused
from skipconv_jax.program.fold.rules import RULES
from skipconv_jax.program.fold.rules.quantised import CALLS
from skipconv_jax.program.fold.tensors import NCHW, NHWC

QUANTISED = (recognise, unrounded, merge_tables)


def _read(fn: Callable[..., Any], variables: Any, x: Any, calls: Calls | None) -> Graph:
    """The graph with frames as channels first where their shape says so, else channels last."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(x)]
    first = any(len(s) == 4 and s[1] <= 4 < s[3] for s in shapes)
    return Reader(variables, RULES, NCHW if first else NHWC, calls).read(fn, x)


def build(fn: Callable[..., Any], variables: Any, x: Any, *, quantised: bool = True) -> Graph:
    """Traces `fn(variables, x)` with concrete variables and folds it.

    Args:
      fn: pure function.
      variables: pytree of concrete arrays.
      x: frame; only shapes and dtypes are read.
      quantised: what lies between QuantizeLinear and DequantizeLinear is computed on bytes, as
        `ops/quantised.py` says; False evaluates it as float32.
    """
    graph = _read(fn, variables, x, CALLS if quantised else None)
    rewrites = (*REWRITES, *QUANTISED) if quantised else REWRITES
    for rewrite in rewrites:
        drop_unused(graph)
        rewrite(graph)
    drop_unused(graph)
    return graph
