"""`quantize`: post-training quantisation from a calibration clip."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.program import fold as g
from skipconv_jax.quantising.correction import corrections
from skipconv_jax.quantising.function import QuantisedFunction, Tree, levels, put
from skipconv_jax.quantising.observed import Observed
from skipconv_jax.quantising.placement import Placement, place, quantisable, unmerged
from skipconv_jax.quantising.ranges import RANGES
from skipconv_jax.quantising.sensitivity import most_sensitive, sensitivity

# Frames on which convolutions are rounded one by one.
_LOOKED_AT = 6


def quantize(
    fn: Callable[..., Any],
    variables: Any,
    clip: Any,
    *,
    ranges: str = "mean_square",
    bias_correction: bool = True,
    keep: int | Sequence[str] = 0,
) -> tuple[Tree, QuantisedFunction]:
    """A trained network in int8, by what its tensors hold over a clip; nothing is trained.

    Kernels are int8 per output channel, symmetric; activations uint8 per tensor. Batch norm is
    folded before. What the last convolutions return, and what follows them, stays float32.

    Args:
      fn: pure function `fn(variables, x)`.
      variables: of it, concrete.
      clip: frames `(T, B, ...)`, as a plan takes them one by one; 8 to 32 that differ are enough.
      ranges: of activations: 'min_max', 'percentile' (.01 % cut at either end), or 'mean_square'
        (the clipping of least error). Frames themselves are never clipped.
      bias_correction: takes the mean error that rounding makes, of weights and of inputs, off each
        bias, from the first convolution to the last.
      keep: names of convolutions to leave in float, or how many at most: those whose rounding alone
        changes the last convolutions' results most. Readers of one tensor stay in float together.

    Returns:
      `(variables, fn)` as `onnx.load` gives them: by the same names, kernels int8.

    Raises:
      ValueError: an unknown way to find ranges, names that are no convolution's, an empty clip.
    """
    if ranges not in RANGES:
        raise ValueError(f"`ranges` (={ranges!r}) must be one of {sorted(RANGES)}.")
    frames = [jax.tree.map(lambda a, i=i: a[i], clip) for i in range(len(jax.tree.leaves(clip)[0]))]
    if not frames:
        raise ValueError("`clip` (of 0 frames) must have frames; 8 to 32 that differ are enough.")
    graph = unmerged(g.build(fn, variables, frames[0], quantised=False))
    names = [n.name for n in quantisable(graph)]
    named = [] if isinstance(keep, int) else list(keep)
    if unknown := sorted(set(named) - set(names)):
        raise ValueError(f"`keep` names {unknown}; the network's convolutions are {names}.")
    placement = place(graph, named)
    grids = Observed(graph, placement, frames).grids(ranges)
    errors: dict[str, float] = {}
    if isinstance(keep, int) and keep > 0:
        groups, errors = sensitivity(graph, placement, grids, _some(frames))
        named = most_sensitive(groups, errors, keep)
        placement = place(graph, named)
    added = corrections(graph, placement, grids, frames) if bias_correction else {}
    arrays = _variables(graph, placement, added)
    rounded_only = {r: grids[r] for r in placement.rounded}
    quantised = tuple(n for n in names if n in placement.convs)
    made = QuantisedFunction(_bare(graph), rounded_only, quantised, tuple(sorted(named)), errors)
    return arrays, made


def _some(frames: Sequence[Any]) -> Sequence[Any]:
    """A few of them, spread over the clip."""
    return frames[:: -(-len(frames) // _LOOKED_AT)]


def _variables(graph: g.Graph, placement: Placement, added: dict[str, np.ndarray]) -> Tree:
    tree: Tree = {}
    for node in graph.nodes:
        if not isinstance(node, g.ConvNode):
            continue
        bias = None if node.bias is None else np.asarray(node.bias, np.float32)
        if node.name in added:
            bias = added[node.name] if bias is None else bias + added[node.name]
        found = {"kernel": node.kernel}
        if node.name in placement.convs:
            kernel, scale = levels(node.kernel)
            found = {"kernel": kernel, "scale": scale}
        if bias is not None:
            found["bias"] = bias.astype(np.float32)
        put(tree, node.name, jax.tree.map(jnp.asarray, found))
    return tree


def _bare(graph: g.Graph) -> g.Graph:
    """The graph without weights, which are in the variables."""
    none = np.zeros((), np.float32)
    nodes = [
        dataclasses.replace(n, kernel=none, bias=None) if isinstance(n, g.ConvNode) else n
        for n in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=nodes)
