"""`quantize`: post-training quantisation from a calibration clip."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.program import fold as g
from skipconv_jax.quantising.function import QuantisedFunction, Tree, levels, put
from skipconv_jax.quantising.observed import Observed
from skipconv_jax.quantising.placement import Placement, place, quantisable, unmerged
from skipconv_jax.quantising.ranges import RANGES
from skipconv_jax.quantising.sensitivity import sensitivity


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
      bias_correction: takes the mean error that rounded weights make off the bias, by each input
        channel's mean over the clip.
      keep: names of convolutions to leave in float, or how many: those whose rounding alone
        changes the outputs most.

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
    seen = Observed(graph, placement, frames)
    grids = seen.grids(ranges)
    errors: dict[str, float] = {}
    if isinstance(keep, int) and keep > 0:
        errors = sensitivity(graph, placement, grids, frames[:2])
        named = sorted(errors, key=lambda n: -errors[n])[:keep]
        placement = place(graph, named)
    means = seen.means if bias_correction else {}
    arrays = _variables(graph, placement, means)
    rounded_only = {r: grids[r] for r in placement.rounded}
    quantised = tuple(n for n in names if n in placement.convs)
    made = QuantisedFunction(_bare(graph), rounded_only, quantised, tuple(sorted(named)), errors)
    return arrays, made


def _variables(graph: g.Graph, placement: Placement, means: dict[str, np.ndarray]) -> Tree:
    tree: Tree = {}
    for node in graph.nodes:
        if not isinstance(node, g.ConvNode):
            continue
        bias = None if node.bias is None else np.asarray(node.bias, np.float32)
        if node.name not in placement.convs:
            found = {"kernel": node.kernel}
        else:
            kernel, scale = levels(node.kernel)
            found = {"kernel": kernel, "scale": scale}
            if node.name in means:
                start = 0 if bias is None else bias
                bias = start - _mean_error(node, kernel * scale - node.kernel, means[node.name])
        if bias is not None:
            found["bias"] = bias.astype(np.float32)
        put(tree, node.name, jax.tree.map(jnp.asarray, found))
    return tree


def _mean_error(node: g.ConvNode, error: np.ndarray, means: np.ndarray) -> np.ndarray:
    """What an error of the kernel adds to each output channel on the mean, borders left out."""
    conv = node.conv
    taps = error.sum(axis=tuple(range(error.ndim - 2)))  # (Ci / groups, Co)
    per_group = means.reshape(conv.groups, -1)  # (groups, Ci / groups)
    outputs = taps.reshape(taps.shape[0], conv.groups, -1)
    made: np.ndarray = np.einsum("gi,igo->go", per_group, outputs).reshape(-1)
    return made


def _bare(graph: g.Graph) -> g.Graph:
    """The graph without weights, which are in the variables."""
    none = np.zeros((), np.float32)
    nodes = [
        dataclasses.replace(n, kernel=none, bias=None) if isinstance(n, g.ConvNode) else n
        for n in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=nodes)
