"""Nodes that move numbers without changing any: bytes go through them as they are."""

import dataclasses

import numpy as np

from skipconv_jax.ops.quantised import Grid
from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.views import Ref

_ALWAYS = (
    g.UpsampleNode,
    g.CropNode,
    g.ConcatNode,
    g.SpaceToDepthNode,
    g.DepthToSpaceNode,
    g.LayoutNode,
    g.ReshapeNode,
    g.FlattenNode,
    g.SpatialMaxNode,
)


def moves(node: g.Node) -> bool:
    """Whether every output is one of the inputs' numbers, picked by place or as the largest."""
    match node:
        case g.ChannelsNode():
            return min(node.index) >= 0
        case g.ResizeNode():
            return all(w.shape[1] == 1 and (w == 1).all() for _, w in node.taps)
        case g.PoolNode():
            return node.fn == "max"
        case g.PadNode():
            return True
        case g.ReduceNode():
            return node.fn == "max"
    return isinstance(node, _ALWAYS)


def on_bytes(node: g.Node, inputs: tuple[Ref, ...], grid: Grid) -> g.Node | None:
    """The node on quantised tensors; None where its border is no number of the grid."""
    if isinstance(node, g.LayoutNode):
        return g.LayoutNode(inputs, -1, node.view.on(inputs[0]))
    if isinstance(node, g.PadNode):
        level = _level(node.value, grid)
        if level is None:
            return None
        return g.PadNode(inputs, -1, node.padding, level)
    return dataclasses.replace(node, inputs=inputs, output=-1)


def _level(value: float, grid: Grid) -> int | None:
    """The q of a border; the least stands for -inf, which only a maximum reads."""
    if value == -np.inf:
        return grid.low
    found = np.flatnonzero(grid.values == np.float32(value))
    return grid.low + int(found[0]) if found.size else None
