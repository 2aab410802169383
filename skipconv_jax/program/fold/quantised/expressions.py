"""Element-wise expressions between a dequantisation and a quantisation, and their tables.

What depends on one quantised number alone has 256 values: they are computed here, once, and are
part of the graph, so that every engine says the same whatever its exponential function rounds to.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops.quantised import Finish, Grid, quantize
from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.execute import execute_node
from skipconv_jax.program.fold.quantised.nodes import DequantizeNode, QTableNode
from skipconv_jax.program.fold.views import Ref

FINE = 4096
"""Entries of a table over a convolution's, sum's or product's own result."""
_CLIPS = {"none": (-np.inf, np.inf), "relu": (0.0, np.inf), "relu6": (0.0, 6.0)}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What an expression is a function of: a tensor of bytes, or one of float32."""

    ref: Ref
    quantised: bool


class Expressions:
    """Who makes which tensor.

    Attributes:
      makers: node by tensor; grows as nodes are made.
      avals: shape and dtype of every tensor.
      uses: how often each tensor of the float graph is read.
    """

    def __init__(
        self, makers: dict[Ref, g.Node], avals: Mapping[Ref, jax.ShapeDtypeStruct], uses: Counter
    ) -> None:
        self.makers, self.avals, self.uses = makers, avals, uses
        self._leaves: dict[Ref, Leaf] = {}

    def root(self, ref: Ref) -> Ref:
        """The tensor of bytes that a tensor of bytes is a table of."""
        while isinstance(node := self.makers.get(ref), QTableNode):
            ref = node.inputs[0]
        return ref

    def leaf(self, ref: Ref) -> Leaf:
        """The one tensor that a float tensor is an element-wise function of, maybe itself."""
        if ref not in self._leaves:
            self._leaves[ref] = self._leaf(ref)
        return self._leaves[ref]

    def _leaf(self, ref: Ref) -> Leaf:
        node = self.makers.get(ref)
        if isinstance(node, DequantizeNode):
            return Leaf(self.root(node.inputs[0]), True)
        if node is None or not self._pointwise(node):
            return Leaf(ref, False)
        found = {self.leaf(r) for r in node.inputs}
        return found.pop() if len(found) == 1 else Leaf(ref, False)

    def _pointwise(self, node: g.Node) -> bool:
        if len({self.avals[r].shape for r in (*node.inputs, node.output)}) > 1:
            return False
        match node:
            case g.AffineNode():
                return node.scale.ndim == node.shift.ndim == 0
            case g.SumNode():
                return set(node.factors) == {1}
        return isinstance(node, g.UnaryNode | g.BinaryNode | g.CompareNode | g.SelectNode)

    def values(self, ref: Ref, given: Mapping[Ref, jax.Array]) -> jax.Array:
        """What an expression is where its leaf has these values."""
        known = dict(given)

        def value(r: Ref) -> jax.Array:
            if r not in known:
                node = self.makers[r]
                operands = [value(i) for i in node.inputs]
                (known[r],) = execute_node(node, operands, operands[0].shape)
            return known[r]

        return value(ref)

    def table(self, ref: Ref, leaf: Leaf) -> np.ndarray:
        """Values of an expression for each of the 256 levels of its leaf."""
        info = np.iinfo(self.avals[leaf.ref].dtype)
        levels = np.arange(info.min, info.max + 1).astype(info.dtype)
        return np.asarray(self.values(ref, {leaf.ref: jnp.asarray(levels)}))

    def closed(self, ref: Ref, leaf: Ref) -> bool:
        """Whether nothing but this expression, read once, reads its leaf."""
        inside: Counter[Ref] = Counter({ref: 1})
        seen: set[Ref] = set()
        waiting = [ref]
        while waiting:
            r = waiting.pop()
            if r == leaf or r in seen:
                continue
            seen.add(r)
            inside.update(self.makers[r].inputs)
            waiting += self.makers[r].inputs
        return all(self.uses[r] == inside[r] for r in (*seen, leaf))

    def rounding(self, ref: Ref, core: g.Node, grid: Grid) -> tuple[np.float32, Finish]:
        """How the result of a node becomes a quantised function of it.

        Args:
          ref: the function, an expression of `core.output`.
          core: a node with an activation of its own, or none.
          grid: of the result.

        Returns:
          What one unit of the node's v is worth, and how v is finished.
        """
        act, params = getattr(core, "act", "none"), getattr(core, "params", ())
        if ref == core.output and (bounds := _bounds(act, params)) is not None:
            lo, hi = (float(np.float32(b) / np.float32(grid.scale)) for b in bounds)
            return np.float32(grid.scale), Finish.on(grid, lo, hi)

        def function(v: np.ndarray) -> np.ndarray:
            node = g.UnaryNode((0,), 1, act, params=params)
            (y,) = execute_node(node, [jnp.asarray(v, jnp.float32)], v.shape)
            return np.asarray(quantize(self.values(ref, {core.output: y}), grid))

        return _fine(function, grid)


def _bounds(act: str, params: tuple[float, ...]) -> tuple[float, float] | None:
    """Of an activation that only clips."""
    return (params[0], params[1]) if act == "clip" else _CLIPS.get(act)


def _fine(function: Callable[[np.ndarray], np.ndarray], grid: Grid) -> tuple[np.float32, Finish]:
    """A table over the range in which a function is not saturated."""
    span = 255 * np.float64(grid.scale)
    reach = np.geomspace(span * 2**-12, max(span, 1.0) * 2**10, 2000).astype(np.float32)
    ends = []
    for side in (-reach, reach):
        q = function(side)
        changing = np.flatnonzero(q != q[-1])
        ends.append(float(side[min(changing[-1] + 1, len(side) - 1)]) if changing.size else 0.0)
    low_end, high_end = min(ends[0], -span / 255), max(ends[1], span / 255)
    unit = np.float32((high_end - low_end) / (FINE - 2))
    low = int(np.floor(low_end / unit))
    steps = np.arange(low, low + FINE)
    table = function(steps.astype(np.float32) * unit)
    bounds = -np.inf, np.inf
    return unit, Finish(grid.dtype, 0, *bounds, low, low + FINE - 1, table)
