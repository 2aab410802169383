"""Where a folded network is rounded: tensors on the way to a quantised convolution."""

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Mapping

from skipconv_jax.program import fold as g
from skipconv_jax.program.fold.quantised.movers import moves

_POINTWISE = g.UnaryNode | g.AffineNode
_COMPUTES = g.SumNode | g.BinaryNode | g.PoolNode | g.SpatialSumNode | _POINTWISE


@dataclasses.dataclass(frozen=True)
class Placement:
    """What is rounded.

    Attributes:
      convs: names of the convolutions that are quantised.
      rounded: tensors that are rounded to a grid where they are made.
      groups: per tensor the tensor whose grid it has: what only moves numbers keeps their grid.
      ends: names of the convolutions whose results lead to no quantised one.
    """

    convs: frozenset[str]
    rounded: frozenset[g.Ref]
    groups: Mapping[g.Ref, g.Ref]
    ends: frozenset[str]


def place(graph: g.Graph, kept: Collection[str]) -> Placement:
    """The placement that leaves the convolutions `kept` in float.

    Tensors that lead to no quantised convolution stay float: a network's last convolutions return
    real numbers, and what decodes them is not rounded.
    """
    convs = frozenset(c.name for c in quantisable(graph) if c.name not in kept)
    readers = defaultdict(list)
    for node in graph.nodes:
        for ref in node.inputs:
            readers[ref].append(node)
    wanted: set[g.Ref] = set()
    for node in reversed(graph.nodes):
        ahead = isinstance(node, _COMPUTES) or moves(node)
        takes = isinstance(node, g.ConvNode) and node.name in convs
        if takes or (ahead and node.output in wanted):
            wanted.update(node.inputs)
    groups = _groups(graph, wanted)
    makers = {n.output: n for n in graph.nodes}
    rounded = {r for r in wanted if _is_rounded(r, makers.get(r), readers[r])}
    ends = {c.name for c in quantisable(graph) if c.output not in wanted}
    return Placement(convs, frozenset(rounded), groups, frozenset(ends))


def unmerged(graph: g.Graph) -> g.Graph:
    """The graph with convolutions and what is added to them apart: each is rounded for itself."""
    avals = dict(graph.avals)
    nodes: list[g.Node] = []
    for node in graph.nodes:
        if not isinstance(node, g.ConvNode) or node.residual is None:
            nodes.append(node)
            continue
        ref = len(avals)
        avals[ref] = avals[node.output]
        plain = dataclasses.replace(node, inputs=node.inputs[:1], output=ref, residual=None)
        nodes.append(dataclasses.replace(plain, act="none", params=()))
        terms = (ref, node.residual)
        nodes.append(g.SumNode(terms, node.output, (1, 1), node.act, params=node.params))
    return dataclasses.replace(graph, nodes=nodes, avals=avals)


def quantisable(graph: g.Graph) -> list[g.ConvNode]:
    """Convolutions that have an integer form."""
    return [n for n in graph.nodes if isinstance(n, g.ConvNode) and n.levels is None]


def _is_rounded(ref: g.Ref, maker: g.Node | None, readers: list[g.Node]) -> bool:
    if maker is not None and moves(maker):
        return False
    # A function of one number that alone reads it rounds for both.
    return not (len(readers) == 1 and isinstance(readers[0], _POINTWISE) and maker is not None)


def _groups(graph: g.Graph, wanted: set[g.Ref]) -> dict[g.Ref, g.Ref]:
    parent = {ref: ref for ref in wanted}

    def find(ref: g.Ref) -> g.Ref:
        while parent[ref] != ref:
            ref = parent[ref]
        return ref

    for node in graph.nodes:
        if moves(node) and node.output in wanted:
            for ref in node.inputs:
                parent[find(ref)] = find(node.output)
    return {ref: find(ref) for ref in wanted}
