"""What a folded float network's tensors hold over a calibration clip."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops.quantised import Grid
from skipconv_jax.program import fold as g
from skipconv_jax.program.fold.execute import execute_node
from skipconv_jax.quantising.function import evaluate
from skipconv_jax.quantising.placement import Placement
from skipconv_jax.quantising.ranges import RANGES, grid_of, min_max

# Numbers of a tensor that are looked at per frame; all of them count for the extremes.
_SAMPLE = 2**14


class Observed:
    """Samples of rounded tensors."""

    def __init__(self, graph: g.Graph, placement: Placement, frames: Sequence[Any]) -> None:
        self._placement, self._inputs = placement, set(graph.inputs)
        self._samples: dict[g.Ref, list[np.ndarray]] = {}
        look = jax.jit(lambda x: _looked_at(graph, placement, x))
        for frame in frames:
            for ref, sample in jax.device_get(look(frame)).items():
                self._samples.setdefault(ref, []).append(sample)

    def grids(self, ranges: str) -> dict[g.Ref, Grid]:
        """Of every rounded tensor; those that share a group share a grid."""
        groups: dict[g.Ref, list[g.Ref]] = {}
        for ref in sorted(self._placement.rounded):
            groups.setdefault(self._placement.groups[ref], []).append(ref)
        found = {}
        for refs in groups.values():
            values = np.concatenate([s for r in refs for s in self._samples[r]])
            way = min_max if self._inputs & set(refs) else RANGES[ranges]
            found.update(dict.fromkeys(refs, grid_of(*way(values))))
        return found


def _looked_at(graph: g.Graph, placement: Placement, x: Any) -> dict[g.Ref, Any]:
    """Samples of rounded tensors, extremes among them."""
    samples: dict[g.Ref, jax.Array] = {}

    def convolve(node: g.ConvNode, inputs: list[jax.Array]) -> jax.Array:
        return execute_node(node, inputs, graph.avals[node.output].shape)[0]

    def seen(ref: g.Ref, value: jax.Array) -> jax.Array:
        if ref in placement.rounded:
            flat = value.ravel()
            # An odd step meets all channels and columns.
            step = max(1, flat.size // _SAMPLE) | 1
            ends = jnp.stack([flat.min(), flat.max()])
            samples[ref] = jnp.concatenate([flat[::step], ends])
        return value

    evaluate(graph, x, convolve, seen)
    return samples
