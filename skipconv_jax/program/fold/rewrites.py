"""Folding: each rewrite replaces a node and what it reads by one node, until none is left."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from skipconv_jax.program.fold.nodes import (
    ACTIVATIONS,
    AffineNode,
    BinaryNode,
    ConvNode,
    Graph,
    Node,
    OtherNode,
    Ref,
    SumNode,
    UnaryNode,
    UpsampleNode,
)


def drop_unused(graph: Graph) -> None:
    """Removes nodes whose tensors nobody reads."""
    uses = graph.uses()
    kept = []
    for node in reversed(graph.nodes):
        if any(uses[r] for r in _made_by(node)):
            kept.append(node)
        else:
            uses.subtract(node.inputs)
    graph.nodes = kept[::-1]


def _made_by(node: Node) -> tuple[Ref, ...]:
    return node.outputs if isinstance(node, OtherNode) else (node.output,)


class _Index:
    """Who makes a tensor and where, and how many nodes read it; kept up to date by `replace`."""

    def __init__(self, graph: Graph) -> None:
        self._makers = {r: n for n in graph.nodes for r in _made_by(n)}
        self._uses = graph.uses()
        self._places = {id(n): i for i, n in enumerate(graph.nodes)}

    def sole(self, ref: Ref, kind: type[Node] | tuple[type[Node], ...]) -> Any:
        """The maker of a tensor, if it is of this kind and has one reader."""
        maker = self._makers.get(ref)
        return maker if isinstance(maker, kind) and self._uses[ref] == 1 else None

    def maker(self, ref: Ref) -> Node | None:
        """What makes a tensor; None for an input of the graph."""
        return self._makers.get(ref)

    def place(self, node: Node) -> int:
        """Position of a node in the order of evaluation."""
        return self._places[id(node)]

    def replace(self, old: Node, new: Node) -> list[int]:
        """Puts `new` in the place of `old`; returns the places of nodes nobody reads any more."""
        self._uses.update(new.inputs)
        at = self._places.pop(id(old))
        unread = self._release(old)
        self._places[id(new)] = at
        self._makers[new.output] = new
        return unread

    def _release(self, node: Node) -> list[int]:
        unread = []
        for ref in node.inputs:
            self._uses[ref] -= 1
            maker = self._makers.get(ref)
            if maker is None or id(maker) not in self._places:
                continue
            if not any(self._uses[r] for r in _made_by(maker)):
                unread += [self._places.pop(id(maker)), *self._release(maker)]
        return unread


def _rewrite(graph: Graph, change: Callable[[Node, _Index], Node | None]) -> None:
    """Replaces each node by what `change` makes of it, until it makes nothing more."""
    index = _Index(graph)
    gone: set[int] = set()
    for at in range(len(graph.nodes)):
        if at in gone:
            continue
        while (new := change(graph.nodes[at], index)) is not None:
            gone.update(index.replace(graph.nodes[at], new))
            graph.nodes[at] = new
    graph.nodes = [n for at, n in enumerate(graph.nodes) if at not in gone]


def _swish(graph: Graph) -> None:
    """x * logistic(x)."""

    def change(node: Node, index: _Index) -> Node | None:
        if not isinstance(node, BinaryNode) or node.fn != "mul":
            return None
        for x, gate in (node.inputs, node.inputs[::-1]):
            maker = index.sole(gate, UnaryNode)
            if maker and maker.fn == "logistic" and maker.inputs == (x,):
                return UnaryNode((x,), node.output, "swish")
        return None

    _rewrite(graph, change)


def _broadcasts(graph: Graph) -> None:
    """An operation on two tensors reads one position as it is, not blown up to a map."""

    def source(ref: Ref, index: _Index) -> Ref:
        maker = index.maker(ref)
        if not isinstance(maker, OtherNode) or maker.eqn.primitive.name != "broadcast_in_dim":
            return ref
        small, shape = graph.avals[maker.inputs[0]].shape, graph.avals[ref].shape
        plain = maker.eqn.params["broadcast_dimensions"] == tuple(range(len(shape)))
        one = len(shape) == 4 and small == (shape[0], 1, 1, shape[3])
        return maker.inputs[0] if plain and one else ref

    def change(node: Node, index: _Index) -> Node | None:
        if not isinstance(node, BinaryNode):
            return None
        left, right = node.inputs
        shape = graph.avals[node.output].shape
        for inputs in ((source(left, index), right), (left, source(right, index))):
            # One of the two keeps the shape of the map.
            if inputs != node.inputs and shape in (graph.avals[r].shape for r in inputs):
                return dataclasses.replace(node, inputs=inputs)
        return None

    _rewrite(graph, change)


def _compose_affine(graph: Graph) -> None:
    """Two affine maps in a row are one."""

    def change(node: Node, index: _Index) -> Node | None:
        if not isinstance(node, AffineNode):
            return None
        inner = index.sole(node.inputs[0], AffineNode)
        if inner is None:
            return None
        scale, shift = node.scale * inner.scale, node.scale * inner.shift + node.shift
        return AffineNode(inner.inputs, node.output, scale, shift)

    _rewrite(graph, change)


def _fold_affine(graph: Graph) -> None:
    """A convolution takes the affine map of its output into kernel and bias."""

    def change(node: Node, index: _Index) -> Node | None:
        if not isinstance(node, AffineNode):
            return None
        conv = index.sole(node.inputs[0], ConvNode)
        if conv is None:
            return None
        channels = (conv.conv.out_channels,)
        scale = np.broadcast_to(node.scale, channels)
        bias = np.broadcast_to(node.shift, channels)
        if conv.bias is not None:
            bias = conv.bias * scale + bias
        before = 1 if conv.scale is None else conv.scale
        return dataclasses.replace(
            conv, output=node.output, kernel=conv.kernel * scale, bias=bias, scale=before * scale
        )

    _rewrite(graph, change)


def _terms(node: Any, term: tuple[Ref, int, float]) -> list[tuple[Ref, int, float]] | None:
    """The terms of a sum that stand for one of its terms, which `node` makes."""
    _, factor, weight = term
    match node:
        case AffineNode() if node.scale.ndim == 0 and not np.any(node.shift):
            return [(node.inputs[0], factor, float(node.scale) * weight)]
        case UpsampleNode() if factor == 1:
            return [(node.inputs[0], node.factor, weight)]
        case SumNode() if factor == 1:
            return [(r, f, w * weight) for r, f, w in node.terms]
    return None


def _sums(graph: Graph) -> None:
    """Trees of additions become one sum, upsampling and scalar weights of its inputs included."""

    def change(node: Node, index: _Index) -> Node | None:
        if isinstance(node, BinaryNode) and node.fn == "add":
            left, right = (graph.avals[r].shape for r in node.inputs)
            return SumNode(node.inputs, node.output, (1, 1)) if left == right else None
        if not isinstance(node, SumNode):
            return None
        for i, term in enumerate(node.terms):
            inner = _terms(index.sole(term[0], (SumNode, UpsampleNode, AffineNode)), term)
            if inner is None:
                continue
            terms = [*node.terms[:i], *inner, *node.terms[i + 1 :]]
            inputs, factors, weights = zip(*terms, strict=True)
            plain = all(w == 1 for w in weights)
            return SumNode(inputs, node.output, factors, weights=() if plain else weights)
        return None

    _rewrite(graph, change)


def _activations(graph: Graph) -> None:
    """Convolutions and sums take the activation that follows them."""

    def change(node: Node, index: _Index) -> Node | None:
        if not isinstance(node, UnaryNode) or node.fn not in ACTIVATIONS:
            return None
        before = index.sole(node.inputs[0], (ConvNode, SumNode))
        if before is None or before.act != "none":
            return None
        return dataclasses.replace(before, output=node.output, act=node.fn, params=node.params)

    _rewrite(graph, change)


def _residuals(graph: Graph) -> None:
    """The later of two summed convolutions takes the other input as its residual."""

    def change(node: Node, index: _Index) -> Node | None:
        if not isinstance(node, SumNode) or node.factors != (1, 1) or node.weights:
            return None
        makers = [(index.sole(r, ConvNode), r) for r in node.inputs]
        free = [
            (index.place(conv), i)
            for i, (conv, _) in enumerate(makers)
            if conv is not None and conv.act == "none" and conv.residual is None
        ]
        if not free or node.inputs[0] == node.inputs[1]:
            return None
        i = max(free)[1]
        conv, other = makers[i][0], node.inputs[1 - i]
        return dataclasses.replace(
            conv,
            inputs=(*conv.inputs, other),
            output=node.output,
            residual=other,
            act=node.act,
            params=node.params,
        )

    _rewrite(graph, change)


REWRITES = (_swish, _broadcasts, _compose_affine, _fold_affine, _sums, _activations, _residuals)
