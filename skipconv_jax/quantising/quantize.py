"""`quantize`: post-training quantisation from a calibration clip."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops.quantised import Grid
from skipconv_jax.ops.quantised_calls import rounded
from skipconv_jax.program import fold as g
from skipconv_jax.program.fold.execute import execute_node
from skipconv_jax.quantising.function import QuantisedFunction, Tree, evaluate, levels, put
from skipconv_jax.quantising.placement import Placement, place, quantisable, unmerged
from skipconv_jax.quantising.ranges import RANGES, grid_of, min_max

# Numbers of a tensor that are looked at per frame; all of them count for the extremes.
_SAMPLE = 2**14


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
    seen = _Seen(graph, placement, frames)
    grids = seen.grids(ranges)
    sensitivity: dict[str, float] = {}
    if isinstance(keep, int) and keep > 0:
        sensitivity = _sensitivity(graph, placement, grids, frames[:2])
        named = sorted(sensitivity, key=lambda n: -sensitivity[n])[:keep]
        placement = place(graph, named)
        grids = {r: grids[r] for r in placement.rounded if r in grids}
    means = seen.means if bias_correction else {}
    arrays = _variables(graph, placement, means)
    rounded_only = {r: grids[r] for r in placement.rounded}
    quantised = tuple(n for n in names if n in placement.convs)
    made = QuantisedFunction(
        _bare(graph), rounded_only, quantised, tuple(sorted(named)), sensitivity
    )
    return arrays, made


class _Seen:
    """What tensors and convolutions' inputs held over a clip."""

    def __init__(self, graph: g.Graph, placement: Placement, frames: Sequence[Any]) -> None:
        self._placement, self._inputs = placement, set(graph.inputs)
        self._samples: dict[g.Ref, list[np.ndarray]] = {}
        self.means: dict[str, np.ndarray] = {}
        look = jax.jit(lambda x: _looked_at(graph, placement, x))
        for frame in frames:
            samples, means = jax.device_get(look(frame))
            for ref, sample in samples.items():
                self._samples.setdefault(ref, []).append(sample)
            for name, mean in means.items():
                self.means[name] = self.means.get(name, 0) + mean / len(frames)

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


def _looked_at(graph: g.Graph, placement: Placement, x: Any) -> tuple[dict[g.Ref, Any], Any]:
    """Samples of rounded tensors, extremes among them, and channel means of convolutions' inputs."""
    samples: dict[g.Ref, jax.Array] = {}
    means: dict[str, jax.Array] = {}

    def convolve(node: g.ConvNode, inputs: list[jax.Array]) -> jax.Array:
        means[node.name] = inputs[0].mean(axis=tuple(range(inputs[0].ndim - 1)))
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
    return samples, means


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


def _sensitivity(
    graph: g.Graph, placement: Placement, grids: dict[g.Ref, Grid], frames: Sequence[Any]
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
            kernel = jnp.where(flag, q * scale, node.kernel)
            grid = grids.get(source(node.inputs[0]))
            seen = inputs[0] if grid is None else jnp.where(flag, rounded(inputs[0], grid), inputs[0])
            changed = dataclasses.replace(node, kernel=kernel)
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
    return float(np.sqrt(off / max(sum(float(np.square(b, dtype=np.float64).sum()) for _, b in pairs), 1e-30)))


def _bare(graph: g.Graph) -> g.Graph:
    """The graph without weights, which are in the variables."""
    none = np.zeros((), np.float32)
    nodes = [
        dataclasses.replace(n, kernel=none, bias=None) if isinstance(n, g.ConvNode) else n
        for n in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=nodes)
