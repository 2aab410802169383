"""Which convolutions lose most by being rounded: each alone, the rest in float32."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops.quantised import Grid
from skipconv_jax.ops.quantised_calls import rounded
from skipconv_jax.program import fold as g
from skipconv_jax.program.fold.execute import execute_node
from skipconv_jax.quantising.function import evaluate, levels
from skipconv_jax.quantising.placement import Placement


def sensitivity(
    graph: g.Graph, placement: Placement, grids: Mapping[g.Ref, Grid], frames: Sequence[Any]
) -> dict[str, float]:
    """Relative error of the outputs where one convolution's kernel and input alone are rounded."""
    convs = [n for n in graph.nodes if isinstance(n, g.ConvNode) and n.name in placement.convs]
    makers = {n.output: n for n in graph.nodes}

    def source(ref: g.Ref) -> g.Ref:
        while ref not in grids and ref in makers and len(makers[ref].inputs) == 1:
            ref = makers[ref].inputs[0]
        return ref

    def run(x: Any, on: jax.Array) -> Any:
        def convolve(node: g.ConvNode, inputs: list[jax.Array]) -> jax.Array:
            if node.name not in order:
                return execute_node(node, inputs, graph.avals[node.output].shape)[0]
            flag = on[order[node.name]]
            q, scale = levels(node.kernel)
            swapped: dict[str, Any] = {"kernel": jnp.where(flag, q * scale, node.kernel)}
            grid = grids.get(source(node.inputs[0]))
            seen = (
                inputs[0] if grid is None else jnp.where(flag, rounded(inputs[0], grid), inputs[0])
            )
            changed = dataclasses.replace(node, **swapped)
            return execute_node(changed, [seen, *inputs[1:]], graph.avals[node.output].shape)[0]

        return jax.tree.leaves(evaluate(graph, x, convolve, lambda ref, value: value))

    order = {n.name: i for i, n in enumerate(convs)}
    jitted = jax.jit(run)
    off = np.zeros(len(convs), bool)
    wanted = [jax.device_get(jitted(x, off)) for x in frames]
    found = {}
    for name, at in order.items():
        alone = off.copy()
        alone[at] = True
        got = [jax.device_get(jitted(x, alone)) for x in frames]
        found[name] = _relative(got, wanted)
    return found


def _relative(got: Any, wanted: Any) -> float:
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True))
    off = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in pairs)
    return float(
        np.sqrt(
            off / max(sum(float(np.square(b, dtype=np.float64).sum()) for _, b in pairs), 1e-30)
        )
    )
