"""Which convolutions lose most by being rounded, those that read one tensor together."""

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

Groups = list[list[str]]
"""Names of convolutions, those that read one tensor together."""


def sensitivity(
    graph: g.Graph, placement: Placement, grids: Mapping[g.Ref, Grid], frames: Sequence[Any]
) -> tuple[Groups, dict[str, float]]:
    """Who reads one tensor, and by name the error of the ends where these alone are rounded.

    The ends are the results of the last convolutions, each error in parts of the end's spread:
    there boxes are not yet pixels, and what is not seen does not outweigh what is. A tensor is
    float only where all that read it are, so that readers are rounded together.
    """
    sources = _Sources(graph, placement, grids)
    convs = [n for n in graph.nodes if isinstance(n, g.ConvNode) and n.name in placement.convs]
    readers: dict[g.Ref, list[str]] = {}
    for node in convs:
        readers.setdefault(sources.of(node), []).append(node.name)
    order = {name: i for i, names in enumerate(readers.values()) for name in names}

    def run(x: Any, on: jax.Array) -> list[jax.Array]:
        ends = []

        def convolve(node: g.ConvNode, inputs: list[jax.Array]) -> jax.Array:
            changed, seen = node, inputs[0]
            if node.name in order:
                flag = on[order[node.name]]
                q, scale = levels(node.kernel)
                swapped: dict[str, Any] = {"kernel": jnp.where(flag, q * scale, node.kernel)}
                changed = dataclasses.replace(node, **swapped)
                grid = sources.grids.get(sources.of(node))
                seen = seen if grid is None else jnp.where(flag, rounded(seen, grid), seen)
            shape = graph.avals[node.output].shape
            y = execute_node(changed, [seen, *inputs[1:]], shape)[0]
            if node.name in placement.ends:
                ends.append(y)
            return y

        evaluate(graph, x, convolve, lambda ref, value: value)
        return ends

    jitted = jax.jit(run)
    off = np.zeros(len(readers), bool)
    wanted = [jax.device_get(jitted(x, off)) for x in frames]
    found = {}
    for at, names in enumerate(readers.values()):
        alone = off.copy()
        alone[at] = True
        error = _relative([jax.device_get(jitted(x, alone)) for x in frames], wanted)
        found.update(dict.fromkeys(names, error))
    return list(readers.values()), found


def most_sensitive(groups: Groups, errors: Mapping[str, float], count: int) -> list[str]:
    """At most so many names, whole groups, worst first."""
    chosen: list[str] = []
    for names in sorted(groups, key=lambda names: -errors[names[0]]):
        if len(chosen) + len(names) > count:
            break
        chosen += names
    return chosen


class _Sources:
    """On which grid the input of a convolution is.

    Attributes:
      grids: by the group of tensors that share one.
    """

    def __init__(self, graph: g.Graph, placement: Placement, grids: Mapping[g.Ref, Grid]) -> None:
        self._groups = placement.groups
        self._makers = {n.output: n for n in graph.nodes}
        self.grids = {placement.groups[r]: grids[r] for r in placement.rounded}

    def of(self, node: g.ConvNode) -> g.Ref:
        """The group; before what computes one number from one number, where that alone rounds."""
        ref = node.inputs[0]
        while self._groups.get(ref) not in self.grids:
            maker = self._makers.get(ref)
            if maker is None or len(maker.inputs) != 1:
                break
            ref = maker.inputs[0]
        return self._groups.get(ref, ref)


def _relative(got: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Root of the mean over ends of squared error by variance."""
    parts = []
    for a, b in zip(zip(*got, strict=True), zip(*wanted, strict=True), strict=True):
        error = np.square(np.stack(a) - np.stack(b), dtype=np.float64).mean()
        parts.append(error / max(float(np.stack(b).var(dtype=np.float64)), 1e-30))
    return float(np.sqrt(np.mean(parts)))
