"""The quantised network as a pure function: the folded graph with roundings in it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops.quantised import Grid, last_axes
from skipconv_jax.ops.quantised_calls import dequantize_linear, rounded
from skipconv_jax.program import fold as g
from skipconv_jax.program.fold.execute import execute_node

Tree = dict[str, Any]


def split(name: str) -> tuple[str, ...]:
    """Where a convolution's arrays stand in the variables."""
    return tuple(name.split("/"))


def get(tree: Mapping[str, Any], name: str) -> Any:
    """A convolution's arrays."""
    for key in split(name):
        tree = tree[key]
    return tree


def put(tree: Tree, name: str, value: Any) -> None:
    """Adds a convolution's arrays."""
    *path, last = split(name)
    for key in path:
        tree = tree.setdefault(key, {})
    tree[last] = value


@dataclasses.dataclass(frozen=True, eq=False)
class QuantisedFunction:
    """`fn(variables, x)` of a quantised network; made by `quantize`.

    Attributes:
      graph: the folded float network; its kernels are in the variables.
      grids: of the tensors that are rounded.
      quantised: names of the convolutions of int8.
      kept: names of those left in float.
      sensitivity: of the convolutions that were measured, the relative error of the outputs where
        that convolution alone is quantised.
    """

    graph: g.Graph
    grids: Mapping[g.Ref, Grid]
    quantised: tuple[str, ...]
    kept: tuple[str, ...]
    sensitivity: Mapping[str, float]

    def __call__(self, variables: Tree, x: Any) -> Any:
        """What the network returns for a frame of B streams."""

        def convolve(node: g.ConvNode, values: list[jax.Array]) -> jax.Array:
            return _convolve(node, values, get(variables, node.name))

        def seen(ref: g.Ref, value: jax.Array) -> jax.Array:
            return rounded(value, self.grids[ref]) if ref in self.grids else value

        return evaluate(self.graph, x, convolve, seen)


def evaluate(graph: g.Graph, x: Any, convolve: Any, seen: Any) -> Any:
    """A folded graph in JAX.

    Args:
      graph: of float32.
      x: frame.
      convolve: computes a `ConvNode` of its inputs' values.
      seen: (tensor, value) to the value that is read.
    """
    values: dict[g.Ref, Any] = {}
    for ref, leaf in zip(graph.inputs, jax.tree.leaves(x), strict=True):
        values[ref] = seen(ref, leaf)
    for node in graph.nodes:
        inputs = [values[r] for r in node.inputs]
        if isinstance(node, g.ConvNode):
            values[node.output] = seen(node.output, convolve(node, inputs))
            continue
        shape = (-1, *graph.avals[node.output].shape[1:])
        refs = node.outputs if isinstance(node, g.OtherNode) else (node.output,)
        for ref, made in zip(refs, execute_node(node, inputs, shape), strict=True):
            values[ref] = seen(ref, made)
    leaves = [values[o] if isinstance(o, int) else jnp.asarray(o) for o in graph.outputs]
    return jax.tree.unflatten(graph.tree, leaves)


def _convolve(node: g.ConvNode, x: list[jax.Array], arrays: Mapping[str, Any]) -> jax.Array:
    kernel = arrays["kernel"]
    if "scale" in arrays:
        kernel = dequantize_linear(kernel, arrays["scale"], jnp.zeros((), jnp.int8))
    # As a convolution, whatever computes its kind faster here: that is what the trace has to say.
    z = node.conv.primitive(x[0], kernel)
    if "bias" in arrays:
        z = z + last_axes(arrays["bias"], z)
    if node.slope is not None:
        return execute_node(g.PReluNode((0,), 1, node.slope), [z], z.shape)[0]
    return execute_node(g.UnaryNode((0,), 1, node.act, params=node.params), [z], z.shape)[0]


def levels(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A kernel as int8 in -127..127 with a scale per output channel, `(Co,)`."""
    largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
    scale = np.where(largest > 0, largest / 127, 1.0).astype(np.float32)
    return np.clip(np.rint(kernel / scale), -127, 127).astype(np.int8), scale
