"""A traced inference network folded into the few operations a fast engine runs.

`build` traces `fn(variables, x)`, evaluates everything that does not depend on the frame (batch
norm statistics, weight standardisation, constants), recognises the remaining equations as nodes,
and folds: affine maps into the convolution before them, activations and residual adds into what
produces their input. An equation without a rule becomes an `OtherNode` that carries it as it was.

Tensors of nodes are `(B, *spatial, C)`, or `(B, C)` after a mean over space.
"""

from collections.abc import Callable
from typing import Any

from skipconv_jax.program.fold.nodes import (
    ACTIVATIONS,
    BINARY,
    UNARY,
    AffineNode,
    BinaryNode,
    ChannelsNode,
    ConcatNode,
    ConvNode,
    CropNode,
    DepthToSpaceNode,
    FlattenNode,
    Graph,
    Node,
    OtherNode,
    PadNode,
    PoolNode,
    PReluNode,
    ReduceNode,
    Ref,
    ReshapeNode,
    ResizeNode,
    SoftmaxNode,
    SpaceToDepthNode,
    SpatialMaxNode,
    SpatialSumNode,
    SumNode,
    UnaryNode,
    UpsampleNode,
)
from skipconv_jax.program.fold.reader import Reader
from skipconv_jax.program.fold.rewrites import REWRITES, drop_unused
from skipconv_jax.program.fold.rules import RULES

__all__ = [
    "ACTIVATIONS",
    "BINARY",
    "UNARY",
    "AffineNode",
    "BinaryNode",
    "ChannelsNode",
    "ConcatNode",
    "ConvNode",
    "CropNode",
    "DepthToSpaceNode",
    "FlattenNode",
    "Graph",
    "Node",
    "OtherNode",
    "PReluNode",
    "PadNode",
    "PoolNode",
    "ReduceNode",
    "Ref",
    "ReshapeNode",
    "ResizeNode",
    "SoftmaxNode",
    "SpaceToDepthNode",
    "SpatialMaxNode",
    "SpatialSumNode",
    "SumNode",
    "UnaryNode",
    "UpsampleNode",
    "build",
]


def build(fn: Callable[..., Any], variables: Any, x: Any) -> Graph:
    """Traces `fn(variables, x)` with concrete variables and folds it.

    Args:
      fn: pure function.
      variables: pytree of concrete arrays.
      x: frame; only shapes and dtypes are read.
    """
    graph = Reader(variables, RULES).read(fn, x)
    for rewrite in REWRITES:
        drop_unused(graph)
        rewrite(graph)
    drop_unused(graph)
    return graph
