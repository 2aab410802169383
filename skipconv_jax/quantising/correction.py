"""What to add to biases so that every convolution's mean result is the float network's."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops.quantised import Grid, last_axes
from skipconv_jax.ops.quantised_calls import rounded
from skipconv_jax.program import fold as g
from skipconv_jax.program.fold.execute import execute_node
from skipconv_jax.quantising.function import evaluate, levels
from skipconv_jax.quantising.placement import Placement


def corrections(
    graph: g.Graph, placement: Placement, grids: Mapping[g.Ref, Grid], frames: Sequence[Any]
) -> dict[str, np.ndarray]:
    """Per convolution what to add to its bias, `(Co,)`.

    From the first convolution to the last: each sees what the corrected ones before it make, so
    that its mean error is of rounded weights, of rounded and saturated inputs, and of nothing that
    was taken off already. Means are over frames and positions.
    """
    convs = {n.name: n for n in graph.nodes if isinstance(n, g.ConvNode)}
    weights = {n: np.asarray(c.kernel, np.float32) for n, c in convs.items()}
    for name in placement.convs:
        q, scale = levels(weights[name])
        weights[name] = q * scale

    def before_activation(node: g.ConvNode, inputs: list[jax.Array], kernel: Any) -> jax.Array:
        changes: dict[str, Any] = {"kernel": kernel, "act": "none", "params": (), "slope": None}
        plain = dataclasses.replace(node, **changes)
        return execute_node(plain, inputs, graph.avals[node.output].shape)[0]

    def mean(z: jax.Array) -> jax.Array:
        return jax.lax.pmean(z.mean(axis=tuple(range(z.ndim - 1))), "frames")

    def run(x: Any, kernels: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        wanted: dict[str, jax.Array] = {}
        found: dict[str, jax.Array] = {}

        def real(node: g.ConvNode, inputs: list[jax.Array]) -> jax.Array:
            z = before_activation(node, inputs, node.kernel)
            wanted[node.name] = mean(z)
            return _activated(node, z)

        def corrected(node: g.ConvNode, inputs: list[jax.Array]) -> jax.Array:
            z = before_activation(node, inputs, kernels[node.name])
            found[node.name] = wanted[node.name] - mean(z)
            return _activated(node, z + last_axes(found[node.name], z))

        def seen(ref: g.Ref, value: jax.Array) -> jax.Array:
            return rounded(value, grids[ref]) if ref in placement.rounded else value

        evaluate(graph, x, real, lambda ref, value: value)
        evaluate(graph, x, corrected, seen)
        return found

    clip = jax.tree.map(lambda *leaves: jnp.stack(leaves), *frames)
    over_frames = jax.vmap(run, in_axes=(0, None), out_axes=None, axis_name="frames")
    return jax.device_get(jax.jit(over_frames)(clip, weights))


def _activated(node: g.ConvNode, z: jax.Array) -> jax.Array:
    if node.slope is not None:
        return execute_node(g.PReluNode((0,), 1, node.slope), [z], z.shape)[0]
    return execute_node(g.UnaryNode((0,), 1, node.act, params=node.params), [z], z.shape)[0]
