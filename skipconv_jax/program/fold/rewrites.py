"""Folding: each rewrite replaces a node and what it reads by one node, until none is left."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.views import Ref


def drop_unused(graph: g.Graph) -> None:
    """Removes nodes whose tensors nobody reads."""
    uses = graph.uses()
    kept = []
    for node in reversed(graph.nodes):
        if any(uses[r] for r in _made_by(node)):
            kept.append(node)
        else:
            uses.subtract(node.inputs)
    graph.nodes = kept[::-1]


def _made_by(node: g.Node) -> tuple[Ref, ...]:
    return node.outputs if isinstance(node, g.OtherNode) else (node.output,)


class _Index:
    """Who makes a tensor and where, and how many nodes read it; kept up to date by `replace`."""

    def __init__(self, graph: g.Graph) -> None:
        self._makers = {r: n for n in graph.nodes for r in _made_by(n)}
        self._uses = graph.uses()
        self._places = {id(n): i for i, n in enumerate(graph.nodes)}

    def sole(self, ref: Ref, kind: type[g.Node] | tuple[type[g.Node], ...]) -> Any:
        """The maker of a tensor, if it is of this kind and has one reader."""
        maker = self._makers.get(ref)
        return maker if isinstance(maker, kind) and self._uses[ref] == 1 else None

    def maker(self, ref: Ref) -> g.Node | None:
        """What makes a tensor; None for an input of the graph."""
        return self._makers.get(ref)

    def place(self, node: g.Node) -> int:
        """Position of a node in the order of evaluation."""
        return self._places[id(node)]

    def replace(self, old: g.Node, new: g.Node) -> list[int]:
        """Puts `new` in the place of `old`; returns the places of nodes nobody reads any more."""
        self._uses.update(new.inputs)
        at = self._places.pop(id(old))
        unread = self._release(old)
        self._places[id(new)] = at
        self._makers[new.output] = new
        return unread

    def _release(self, node: g.Node) -> list[int]:
        unread = []
        for ref in node.inputs:
            self._uses[ref] -= 1
            maker = self._makers.get(ref)
            if maker is None or id(maker) not in self._places:
                continue
            if not any(self._uses[r] for r in _made_by(maker)):
                unread += [self._places.pop(id(maker)), *self._release(maker)]
        return unread


def _rewrite(graph: g.Graph, change: Callable[[g.Node, _Index], g.Node | None]) -> None:
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


def _swish(graph: g.Graph) -> None:
    """x * logistic(x)."""

    def change(node: g.Node, index: _Index) -> g.Node | None:
        if not isinstance(node, g.BinaryNode) or node.fn != "mul":
            return None
        for x, gate in (node.inputs, node.inputs[::-1]):
            maker = index.sole(gate, g.UnaryNode)
            if maker and maker.fn == "logistic" and maker.inputs == (x,):
                return g.UnaryNode((x,), node.output, "swish")
        return None

    _rewrite(graph, change)


def _compose_affine(graph: g.Graph) -> None:
    """Two affine maps in a row are one."""

    def change(node: g.Node, index: _Index) -> g.Node | None:
        if not isinstance(node, g.AffineNode):
            return None
        inner = index.sole(node.inputs[0], g.AffineNode)
        if inner is None:
            return None
        scale, shift = node.scale * inner.scale, node.scale * inner.shift + node.shift
        return g.AffineNode(inner.inputs, node.output, scale, shift)

    _rewrite(graph, change)


def _fold_affine(graph: g.Graph) -> None:
    """A convolution takes the affine map of its output into kernel and bias."""

    def change(node: g.Node, index: _Index) -> g.Node | None:
        if not isinstance(node, g.AffineNode):
            return None
        conv = index.sole(node.inputs[0], g.ConvNode)
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
        case g.AffineNode() if node.scale.ndim == 0 and not np.any(node.shift):
            return [(node.inputs[0], factor, float(node.scale) * weight)]
        case g.UpsampleNode() if factor == 1:
            return [(node.inputs[0], node.factor, weight)]
        case g.SumNode() if factor == 1:
            return [(r, f, w * weight) for r, f, w in node.terms]
    return None


def _sums(graph: g.Graph) -> None:
    """Trees of additions become one sum, upsampling and scalar weights of its inputs included."""

    def change(node: g.Node, index: _Index) -> g.Node | None:
        if isinstance(node, g.BinaryNode) and node.fn == "add":
            left, right = (graph.avals[r].shape for r in node.inputs)
            return g.SumNode(node.inputs, node.output, (1, 1)) if left == right else None
        if not isinstance(node, g.SumNode):
            return None
        for i, term in enumerate(node.terms):
            inner = _terms(index.sole(term[0], (g.SumNode, g.UpsampleNode, g.AffineNode)), term)
            if inner is None:
                continue
            terms = [*node.terms[:i], *inner, *node.terms[i + 1 :]]
            inputs, factors, weights = zip(*terms, strict=True)
            plain = all(w == 1 for w in weights)
            return g.SumNode(inputs, node.output, factors, weights=() if plain else weights)
        return None

    _rewrite(graph, change)


def _activations(graph: g.Graph) -> None:
    """Convolutions and sums take the activation that follows them."""

    def change(node: g.Node, index: _Index) -> g.Node | None:
        if not isinstance(node, g.UnaryNode) or node.fn not in g.ACTIVATIONS:
            return None
        before = index.sole(node.inputs[0], (g.ConvNode, g.SumNode))
        if before is None or before.act != "none":
            return None
        return dataclasses.replace(before, output=node.output, act=node.fn, params=node.params)

    _rewrite(graph, change)


def _prelus(graph: g.Graph) -> None:
    """Convolutions take the PReLU that follows them."""

    def change(node: g.Node, index: _Index) -> g.Node | None:
        if not isinstance(node, g.PReluNode):
            return None
        conv = index.sole(node.inputs[0], g.ConvNode)
        if conv is None or conv.act != "none" or conv.levels is not None:
            return None
        return dataclasses.replace(conv, output=node.output, act="prelu", slope=node.slope)

    _rewrite(graph, change)


def _pools(graph: g.Graph) -> None:
    """A sum over windows divided by their size is a mean; zero borders become padding."""

    def change(node: g.Node, index: _Index) -> g.Node | None:
        if isinstance(node, g.AffineNode) and node.scale.ndim == 0 and not np.any(node.shift):
            pool = index.sole(node.inputs[0], g.PoolNode)
            if pool is None or pool.fn != "sum":
                return None
            size = float(np.prod(pool.window))
            if not np.isclose(node.scale, 1 / size, rtol=1e-6):
                return None
            return dataclasses.replace(pool, output=node.output, fn="mean")
        if isinstance(node, g.ConvNode | g.PoolNode):
            return _padded(node, index)
        return None

    _rewrite(graph, change)


def _padded(node: Any, index: _Index) -> g.Node | None:
    border = index.maker(node.inputs[0])
    if not isinstance(border, g.PadNode):
        return None
    maximum = isinstance(node, g.PoolNode) and node.fn == "max"
    if border.value != (-np.inf if maximum else 0.0) or getattr(node, "fn", "") == "mean_valid":
        return None
    conv = node.conv if isinstance(node, g.ConvNode) else node
    pads = tuple(
        (lo + a, hi + b) for (lo, hi), (a, b) in zip(conv.padding, border.padding, strict=True)
    )
    inputs = (border.inputs[0], *node.inputs[1:])
    if isinstance(node, g.PoolNode):
        return dataclasses.replace(node, inputs=inputs, padding=pads)
    spatial = tuple(n - a - b for n, (a, b) in zip(conv.in_spatial, border.padding, strict=True))
    moved = dataclasses.replace(conv, padding=pads, in_spatial=spatial)
    return dataclasses.replace(node, inputs=inputs, conv=moved)


def _channel_lists(graph: g.Graph) -> None:
    """Channels of channels are channels of what those come from."""

    def change(node: g.Node, index: _Index) -> g.Node | None:
        if not isinstance(node, g.ConcatNode | g.ChannelsNode):
            return None
        if not any(isinstance(index.maker(r), g.ConcatNode | g.ChannelsNode) for r in node.inputs):
            return None
        table = _channels(node, graph)
        refs: list[Ref] = []
        places: list[tuple[Ref, int]] = []
        for ref, channel in table:
            maker = index.maker(ref)
            inner = isinstance(maker, g.ConcatNode | g.ChannelsNode)
            places.append(_channels(maker, graph)[channel] if inner else (ref, channel))
        refs = list(dict.fromkeys(ref for ref, _ in places))
        if len(refs) > 8 and len(refs) > len(node.inputs):
            return None
        return _picked(refs, places, node.output, graph)

    _rewrite(graph, change)


def _channels(node: Any, graph: g.Graph) -> list[tuple[Ref, int]]:
    """Input and channel of every output channel."""
    flat = [(r, c) for r in node.inputs for c in range(graph.avals[r].shape[-1])]
    return flat if isinstance(node, g.ConcatNode) else [flat[i] for i in node.index]


def _picked(refs: list[Ref], places: list[tuple[Ref, int]], output: Ref, graph: g.Graph) -> g.Node:
    starts, at = {}, 0
    for ref in refs:
        starts[ref] = at
        at += graph.avals[ref].shape[-1]
    index = tuple(starts[ref] + channel for ref, channel in places)
    if index == tuple(range(at)):
        return g.ConcatNode(tuple(refs), output)
    return g.ChannelsNode(tuple(refs), output, index)


def _stems(graph: g.Graph) -> None:
    """A convolution of every s-th row and column, phase by phase, is one of stride s on the map.

    `Focus` stems and `space_to_depth` before a convolution: the places of the taps are noted, since
    a gate's kernel is as `skip` saw it.
    """

    def change(node: g.Node, index: _Index) -> g.Node | None:
        if not isinstance(node, g.ConvNode) or node.conv.rank != 2 or node.taps is not None:
            return None
        conv = node.conv
        if conv.groups != 1 or conv.dilation != (1, 1) or node.levels is not None:
            return None
        found = _phases_of(index.maker(node.inputs[0]), index, graph)
        if found is None:
            return None
        source, block, places = found
        every = block * block * graph.avals[source].shape[-1]
        # A position the convolution doesn't see would wake its norm gate; one seen twice needs two
        # taps.
        if len(places) != every or len(set(places)) != every:
            return None
        return _strided(node, source, block, places, graph)

    _rewrite(graph, change)


def _phases_of(
    maker: g.Node | None, index: _Index, graph: g.Graph
) -> tuple[Ref, int, list[tuple[int, int, int]]] | None:
    """The map, the stride, and row, column and channel of each channel."""
    if isinstance(maker, g.SpaceToDepthNode):
        source, s = maker.inputs[0], maker.block
        c = graph.avals[source].shape[-1]
        return source, s, [(k // c // s, k // c % s, k % c) for k in range(s * s * c)]
    if not isinstance(maker, g.ConcatNode | g.ChannelsNode):
        return None
    crops = {r: index.maker(r) for r in maker.inputs}
    known = [m for m in crops.values() if isinstance(m, g.CropNode)]
    if len(known) != len(crops) or len({m.inputs[0] for m in known}) != 1:
        return None
    source, s = known[0].inputs[0], known[0].strides[0]
    size = graph.avals[source].shape[1:3]
    for m in known:
        whole = tuple(n // s for n in size) == m.sizes and all(n % s == 0 for n in size)
        if not whole or m.strides != (s, s) or max(m.starts) >= s or s == 1:
            return None
    starts = {r: m.starts for r, m in crops.items() if isinstance(m, g.CropNode)}
    return source, s, [(starts[r][0], starts[r][1], c) for r, c in _channels(maker, graph)]


def _strided(
    node: g.ConvNode, source: Ref, s: int, places: list[tuple[int, int, int]], graph: g.Graph
) -> g.ConvNode:
    conv = node.conv
    (kh, kw), channels = conv.window, graph.avals[source].shape[-1]
    kernel = np.zeros((kh * s, kw * s, channels, conv.out_channels), np.float32)
    taps = np.full((kh * s, kw * s, channels), -1, np.int64)
    numbers = np.arange(kh * kw * conv.in_channels).reshape(kh, kw, conv.in_channels)
    for i, (dy, dx, c) in enumerate(places):
        kernel[dy::s, dx::s, c] = node.kernel[:, :, i]
        taps[dy::s, dx::s, c] = numbers[:, :, i]
    size = graph.avals[source].shape[1:3]
    padding = tuple((lo * s, hi * s) for lo, hi in conv.padding)
    moved = dataclasses.replace(
        conv,
        window=(kh * s, kw * s),
        strides=tuple(n * s for n in conv.strides),
        padding=padding,
        in_spatial=size,
        in_channels=channels,
    )
    inputs = (source, *node.inputs[1:])
    return dataclasses.replace(node, inputs=inputs, kernel=kernel, conv=moved, taps=taps)


def _softmax(graph: g.Graph) -> None:
    """exp(x - max) / sum of that, over the channels."""

    def change(node: g.Node, index: _Index) -> g.Node | None:
        if not isinstance(node, g.BinaryNode) or node.fn != "div":
            return None
        top, total = index.maker(node.inputs[0]), index.maker(node.inputs[1])
        if not isinstance(total, g.ReduceNode) or total.fn != "sum":
            return None
        if total.inputs != node.inputs[:1] or not isinstance(top, g.UnaryNode) or top.fn != "exp":
            return None
        centred = index.maker(top.inputs[0])
        if not isinstance(centred, g.BinaryNode) or centred.fn != "sub":
            return None
        x, largest = centred.inputs[0], _unclipped(centred.inputs[1], index)
        if isinstance(largest, g.ReduceNode) and largest.fn == "max" and largest.inputs == (x,):
            return g.SoftmaxNode((x,), node.output)
        return None

    _rewrite(graph, change)


def _unclipped(ref: Ref, index: _Index) -> g.Node | None:
    """What makes a tensor, a maximum with -inf left out."""
    maker = index.maker(ref)
    if isinstance(maker, g.UnaryNode) and maker.fn == "clip" and maker.params == (-np.inf, np.inf):
        return index.maker(maker.inputs[0])
    return maker


def _residuals(graph: g.Graph) -> None:
    """The later of two summed convolutions takes the other input as its residual."""

    def change(node: g.Node, index: _Index) -> g.Node | None:
        if not isinstance(node, g.SumNode) or node.factors != (1, 1) or node.weights:
            return None
        makers = [(index.sole(r, g.ConvNode), r) for r in node.inputs]
        free = [
            (index.place(conv), i)
            for i, (conv, _) in enumerate(makers)
            if conv is not None
            and conv.act == "none"
            and conv.residual is None
            # A sum of quantised tensors has a node of its own.
            and conv.levels is None
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


REWRITES = (
    _softmax,
    _swish,
    _pools,
    _channel_lists,
    _compose_affine,
    _fold_affine,
    _stems,
    _sums,
    _activations,
    _prelus,
    _residuals,
)
