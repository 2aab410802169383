"""A graph on bytes made fit for the engine: what enters and leaves is bytes, and is moved less."""

import dataclasses
from typing import Any

import jax
import numpy as np

from skipconv_jax.program import fold as g

_FLOAT_MOVERS = (g.SpaceToDepthNode, g.ChannelsNode, g.CropNode, g.UpsampleNode, g.ReshapeNode)


def bytes_inside(graph: g.Graph) -> g.Graph:
    """Numbers that only change places before they are rounded are rounded before.

    A frame then enters a program as bytes, however its pixels are turned into channels. And bytes
    that are laid out anew before they become real numbers become so before.
    """
    avals, nodes = dict(graph.avals), list(graph.nodes)
    while (pair := _swappable(dataclasses.replace(graph, nodes=nodes))) is not None:
        first, then = pair
        x, middle, out = first.inputs[0], first.output, then.output
        avals[middle] = jax.ShapeDtypeStruct(avals[x].shape, avals[out].dtype)
        moved = dataclasses.replace(first, inputs=(middle,), output=out)
        if isinstance(first, g.LayoutNode):
            moved = dataclasses.replace(moved, view=first.view.on(middle))
        at = next(i for i, n in enumerate(nodes) if n is first)
        nodes = [n for n in nodes if n is not then]
        nodes[at : at + 1] = [dataclasses.replace(then, inputs=(x,), output=middle), moved]
    return _strided(dataclasses.replace(graph, nodes=nodes, avals=avals))


def _swappable(graph: g.Graph) -> tuple[Any, Any] | None:
    """A node that moves numbers, and the change of their kind behind it that could come first."""
    uses, made = graph.uses(), {n.output: n for n in graph.nodes}
    for node in graph.nodes:
        if not isinstance(node, g.QuantizeNode | g.DequantizeNode):
            continue
        before = made.get(node.inputs[0])
        kinds = _FLOAT_MOVERS if isinstance(node, g.QuantizeNode) else (g.LayoutNode,)
        if not isinstance(before, kinds) or len(before.inputs) != 1 or uses[before.output] != 1:
            continue
        if not (isinstance(before, g.ChannelsNode) and min(before.index) < 0):
            return before, node
    return None


def _strided(graph: g.Graph) -> g.Graph:
    """Convolutions of a space-to-depth read the map before it, with strides."""
    uses, made = graph.uses(), {n.output: n for n in graph.nodes}

    def alone(ref: int) -> g.Node | None:
        return made.get(ref) if uses[ref] == 1 else None

    nodes: list[g.Node] = []
    for node in graph.nodes:
        if isinstance(node, g.QConvNode) and node.conv.groups == 1 and node.conv.rank == 2:
            before: g.Node | None = alone(node.inputs[0])
            order: np.ndarray | None = None
            if isinstance(before, g.ChannelsNode) and len(before.inputs) == 1:
                order = np.asarray(before.index)
                before = alone(before.inputs[0])
            if isinstance(before, g.SpaceToDepthNode) and node.conv.dilation == (1, 1):
                node = _over(node, before, order, graph.avals[before.inputs[0]].shape)
        nodes.append(node)
    graph = dataclasses.replace(graph, nodes=nodes)
    uses = graph.uses()
    gone = (g.SpaceToDepthNode, g.ChannelsNode)
    while dead := {id(n) for n in nodes if isinstance(n, gone) and not uses[n.output]}:
        nodes = [n for n in nodes if id(n) not in dead]
        graph = dataclasses.replace(graph, nodes=nodes)
        uses = graph.uses()
    return graph


def _over(
    node: g.QConvNode, before: g.SpaceToDepthNode, order: np.ndarray | None, shape: tuple[int, ...]
) -> g.QConvNode:
    """The convolution of what a space-to-depth reads, its kernel taken apart the same way."""
    s, (_, h, w, c) = before.block, shape
    kh, kw, _, co = node.kernel.shape
    kernel = np.zeros((kh, kw, s * s * c, co), np.int8)
    places = np.arange(s * s * c) if order is None else order
    if sorted(places.tolist()) != list(range(s * s * c)):
        return node
    kernel[:, :, places] = node.kernel
    phases = (c, s, s) if before.interleaved else (s, s, c)
    axes = (0, 3, 1, 4, 2, 5) if before.interleaved else (0, 2, 1, 3, 4, 5)
    split = kernel.reshape(kh, kw, *phases, co).transpose(axes)
    conv = dataclasses.replace(
        node.conv,
        window=(kh * s, kw * s),
        strides=tuple(n * s for n in node.conv.strides),
        padding=tuple((low * s, high * s) for low, high in node.conv.padding),
        in_spatial=(h, w),
        in_channels=c,
    )
    return dataclasses.replace(
        node, inputs=before.inputs, conv=conv, kernel=split.reshape(kh * s, kw * s, c, co)
    )
