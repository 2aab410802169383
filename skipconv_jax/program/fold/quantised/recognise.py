"""Dequantise, compute, quantise becomes one node on bytes; what is no such chain stays float.

One walk in the order of evaluation. A float tensor that is a tensor of bytes dequantised is noted,
nodes that move numbers move the bytes instead, and at each `QuantizeNode` what it rounds is looked
at: a function of one number is a table, a convolution, sum, product or mean finishes itself, and
what only moves the results of these is moved as bytes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops.quantised import Finish, Grid, quantize
from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.quantised import lowering, movers
from skipconv_jax.program.fold.quantised.expressions import Expressions
from skipconv_jax.program.fold.quantised.nodes import (
    DequantizeNode,
    QConvNode,
    QMeanNode,
    QMulNode,
    QSumNode,
    QTableNode,
    QuantizeNode,
)
from skipconv_jax.program.fold.views import Ref


def recognise(graph: g.Graph) -> None:
    """Puts nodes on bytes in the place of what dequantises and quantises around them."""
    if any(isinstance(n, DequantizeNode) for n in graph.nodes):
        _Walk(graph).run()


def unrounded(graph: g.Graph) -> None:
    """Convolutions of bytes that nobody rounds leave the integers as float32."""
    makers = {n.output: n for n in graph.nodes}
    nodes: list[g.Node] = []
    for node in graph.nodes:
        source = makers.get(node.inputs[0]) if isinstance(node, g.ConvNode) else None
        made = None
        if isinstance(node, g.ConvNode) and isinstance(source, DequantizeNode):
            start = source.inputs[0], source.grid
            made = lowering.convolution(node, start, np.float32(1), Finish.real())
        if made is None or not isinstance(node, g.ConvNode):
            nodes.append(node)
        elif node.act == "none":
            nodes.append(dataclasses.replace(made, output=node.output))
        else:
            plain = max(graph.avals) + 1
            graph.avals[plain] = graph.avals[node.output]
            nodes.append(dataclasses.replace(made, output=plain))
            nodes.append(g.UnaryNode((plain,), node.output, node.act, params=node.params))
    graph.nodes = nodes


def merge_tables(graph: g.Graph) -> None:
    """Nodes that finish themselves take over the table that alone reads them."""
    uses, makers = graph.uses(), {n.output: n for n in graph.nodes}
    gone: set[int] = set()
    for at, node in enumerate(graph.nodes):
        if not isinstance(node, QTableNode) or uses[node.inputs[0]] != 1:
            continue
        before = makers.get(node.inputs[0])
        merged: g.Node
        if isinstance(before, QTableNode):
            levels = before.table.astype(np.int64) - np.iinfo(before.table.dtype).min
            merged = dataclasses.replace(before, output=node.output, table=node.table[levels])
        elif isinstance(before, QConvNode | QSumNode | QMulNode | QMeanNode):
            finish = before.finish.then(node.table)
            merged = dataclasses.replace(before, output=node.output, finish=finish)
        else:
            continue
        gone.add(id(before))
        graph.nodes[at] = makers[node.output] = merged
    graph.nodes = [n for n in graph.nodes if id(n) not in gone]


class _Walk:
    """The nodes made so far, and what is known of tensors.

    Attributes:
      real: float tensors that are tensors of bytes, dequantised.
      same: tensors of bytes that are others under another name.
    """

    def __init__(self, graph: g.Graph) -> None:
        self.graph, self.avals = graph, graph.avals
        self.nodes: list[g.Node] = []
        self.expressions = Expressions({}, graph.avals, graph.uses())
        self.makers = self.expressions.makers
        self.real: dict[Ref, tuple[Ref, Grid]] = {}
        self.same: dict[Ref, Ref] = {}

    def run(self) -> None:
        """The whole graph."""
        for node in self.graph.nodes:
            self._visit(_renamed(node, self.same))
        self.graph.nodes = self.nodes
        outputs = self.graph.outputs
        self.graph.outputs = [self.same.get(o, o) if isinstance(o, int) else o for o in outputs]

    def _visit(self, node: g.Node) -> None:
        if isinstance(node, DequantizeNode):
            self.real[node.output] = (node.inputs[0], node.grid)
        elif isinstance(node, QuantizeNode):
            made = self.quantised(node.inputs[0], node.grid)
            if made is not None:
                self.same[node.output] = made
                return
        elif movers.moves(node) and self._moved(node):
            return
        self._add(node)

    def _add(self, node: g.Node) -> None:
        self.nodes.append(node)
        self.makers.update(dict.fromkeys(getattr(node, "outputs", (node.output,)), node))

    def _make(self, node: Any, shape: tuple[int, ...], dtype: str) -> Ref:
        """Adds a node with a tensor of its own."""
        ref = max(self.avals) + 1
        self.avals[ref] = jax.ShapeDtypeStruct(shape, np.dtype(dtype))
        self._add(dataclasses.replace(node, output=ref))
        return ref

    def _moved(self, node: g.Node) -> bool:
        """Moves bytes instead of what they stand for."""
        sources = [self.real[r] for r in node.inputs if r in self.real]
        if len(sources) < len(node.inputs) or len({grid for _, grid in sources}) != 1:
            return False
        grid = sources[0][1]
        moved = movers.on_bytes(node, tuple(ref for ref, _ in sources), grid)
        if moved is None:
            return False
        ref = self._make(moved, self.avals[node.output].shape, grid.dtype)
        self._add(DequantizeNode((ref,), node.output, grid))
        self.real[node.output] = (ref, grid)
        return True

    # -- from a quantisation backwards ------------------------------------------------------------
    def quantised(self, ref: Ref, grid: Grid) -> Ref | None:
        """A float tensor on a grid, computed on bytes; None where that can't be."""
        if self.real.get(ref, (ref, None))[1] == grid:
            return self.real[ref][0]
        leaf = self.expressions.leaf(ref)
        if leaf.quantised:
            values = jnp.asarray(self.expressions.table(ref, leaf))
            table = np.asarray(quantize(values, grid))
            return self._make(
                QTableNode((leaf.ref,), -1, table), self.avals[leaf.ref].shape, grid.dtype
            )
        core = self.makers.get(leaf.ref)
        if core is None:
            return None
        if leaf.ref == ref and movers.moves(core):
            return self._carried(core, grid)
        if not self.expressions.closed(ref, leaf.ref):
            return None
        unit, finish = self.expressions.rounding(ref, core, grid)
        return self._computed(core, unit, finish)

    def _carried(self, node: g.Node, grid: Grid) -> Ref | None:
        """A node that moves numbers, on the bytes of its inputs, each brought to the grid."""
        if not all(self._carries(r) for r in node.inputs):
            return None
        refs = [self.quantised(r, grid) for r in node.inputs]
        if None in refs:
            return None
        moved = movers.on_bytes(node, tuple(r for r in refs if r is not None), grid)
        shape = self.avals[node.output].shape
        return None if moved is None else self._make(moved, shape, grid.dtype)

    def _carries(self, ref: Ref) -> bool:
        """Whether a tensor can be had on any grid: asked of all inputs before one is made."""
        leaf = self.expressions.leaf(ref)
        node = self.makers.get(leaf.ref)
        if leaf.quantised or node is None or leaf.ref != ref or not movers.moves(node):
            return leaf.quantised
        return all(self._carries(r) for r in node.inputs)

    def _computed(self, core: g.Node, unit: np.float32, finish: Finish) -> Ref | None:
        """A node that computes in integers and finishes itself."""
        made: g.Node | None = None
        shape = self.avals[core.output].shape
        match core:
            case g.ConvNode() if core.inputs[0] in self.real:
                made = lowering.convolution(core, self.real[core.inputs[0]], unit, finish)
            case g.SumNode():
                terms = [(self._upsampled(r, f), w) for r, f, w in core.terms]
                made = lowering.total(terms, self.expressions, unit, finish)
            case g.BinaryNode(fn="add" | "sub") if _alike(core, self.avals):
                weights = (1.0, 1.0 if core.fn == "add" else -1.0)
                terms = list(zip(core.inputs, weights, strict=True))
                made = lowering.total(terms, self.expressions, unit, finish)
            case g.BinaryNode(fn="mul"):
                made = lowering.product(core, self.real, unit, finish)
            case g.PoolNode() | g.SpatialSumNode():
                size = self.avals[core.inputs[0]].shape[1:-1]
                made = lowering.mean(core, self.real, size, unit, finish)
        if isinstance(made, QMeanNode) and len(shape) == 2:
            point = self._make(made, (shape[0], 1, 1, shape[1]), finish.dtype)
            return self._make(g.ReshapeNode((point,), -1), shape, finish.dtype)
        return None if made is None else self._make(made, shape, finish.dtype)

    def _upsampled(self, ref: Ref, factor: int) -> Ref:
        """A term of a sum at the sum's size."""
        if factor == 1:
            return ref
        b, *size, c = self.avals[ref].shape
        shape = (b, *(n * factor for n in size), c)
        if ref not in self.real:
            return self._make(g.UpsampleNode((ref,), -1, factor), shape, "float32")
        source, grid = self.real[ref]
        moved = self._make(g.UpsampleNode((source,), -1, factor), shape, grid.dtype)
        made = self._make(DequantizeNode((moved,), -1, grid), shape, "float32")
        self.real[made] = (moved, grid)
        return made


def _renamed(node: g.Node, same: dict[Ref, Ref]) -> g.Node:
    """The node with other names for its inputs."""
    if not any(r in same for r in node.inputs):
        return node
    inputs = tuple(same.get(r, r) for r in node.inputs)
    if isinstance(node, g.LayoutNode):
        return g.LayoutNode(inputs, node.output, node.view.on(inputs[0]))
    if isinstance(node, g.OtherNode | g.SelectNode):
        operands = tuple(same.get(o, o) if isinstance(o, int) else o for o in node.operands)
        return dataclasses.replace(node, inputs=inputs, operands=operands)
    return dataclasses.replace(node, inputs=inputs)


def _alike(node: g.Node, avals: dict[Ref, jax.ShapeDtypeStruct]) -> bool:
    return len({avals[r].shape for r in (*node.inputs, node.output)}) == 1
