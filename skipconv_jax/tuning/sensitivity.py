r"""What each convolution would save and spoil at each threshold, from two passes over a clip.

Both passes run the dense network. The first finds the scale of each layer's scores. The second
lets every layer run its policy at K thresholds side by side, on the dense inputs: since the dense
output z_t is known, no candidate needs a convolution (z~ is z_t where a block is recomputed, and
grows by z_t - z_{t-1} where Eq. 3 adds w * r_t). The error delta = z~ - z of a layer reaches the
network's output y as J delta to first order; with Gaussian probes v,

    E <J^T v, delta>^2 = ||J delta||^2,

so one backward pass per probe serves all layers and all thresholds.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops import Decision, Observation, Previous
from skipconv_jax.ops.geometry import Conv, block_upsample, per_stream
from skipconv_jax.program.walk import Site, Visitor, evaluate, number_of_streams

# Quantiles of a layer's block scores that become candidate thresholds, and multiples of the
# largest: policies that remember what they skipped fire at those, too.
_QUANTILES = (0.02, 0.1, 0.25, 0.45, 0.65, 0.8, 0.9, 0.97)
_BEYOND = (1.0, 2.0, 4.0)
CANDIDATES = len(_QUANTILES) + len(_BEYOND)


class LayerCurve(NamedTuple):
    """One layer under one block size.

    Attributes:
      thresholds: `(K,)` increasing.
      firing: `(K,)` share of output positions computed, reference frame excluded.
      damage: `(K,)` squared error it causes in the network's output, relative to ||y||^2.
    """

    thresholds: np.ndarray
    firing: np.ndarray
    damage: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Curves of every skippable convolution.

    Attributes:
      sites: all convolutions of the network, in the order of the trace.
      blocks: block sizes measured.
      curves: by (name, block).
      passes: dense forward passes over the clip.
      backward: backward passes over the clip.
    """

    sites: tuple[Site, ...]
    blocks: tuple[int, ...]
    curves: dict[tuple[str, int], LayerCurve]
    passes: int
    backward: int


def network_sites(fn: Callable[..., Any], variables: Any, x: Any) -> list[Site]:
    """Every convolution of a network, traced only."""
    sites: list[Site] = []

    def run(variables: Any, x: Any) -> Any:
        y, found = evaluate(fn, variables, x, (), Visitor())
        sites.extend(found)
        return y

    jax.eval_shape(run, variables, x)
    return sites


class _Inputs(Visitor):
    """Hands each layer's input and kernel to `measure`; adds `shifts[name]` to its output."""

    def __init__(self, measure: Callable[..., Any], shifts: dict[str, jax.Array] | None) -> None:
        super().__init__()
        self._measure, self._shifts = measure, shifts

    def __call__(self, site: Site, x: jax.Array, kernel: jax.Array) -> jax.Array | None:
        if site.conv is None:
            return None
        z = site.conv(x, kernel)
        self.made[site.name] = self._measure(site, x, kernel, z)
        return z if self._shifts is None else z + self._shifts[site.name]


def _images(x: Any, site: Site) -> int:
    return number_of_streams(x) * site.calls


def score_scales(
    fn: Callable[..., Any],
    variables: Any,
    clip: Sequence[Any],
    gates: Callable[[float, int], Any],
    blocks: Sequence[int],
) -> dict[tuple[str, int], np.ndarray]:
    """Candidate thresholds of each layer and block size, from the changes between frames."""
    sites = [s for s in network_sites(fn, variables, clip[0]) if s.conv is not None]
    policy = Previous()

    def measure(site: Site, x: jax.Array, kernel: jax.Array, z: jax.Array) -> Any:
        return x, kernel

    @jax.jit
    def step(past: dict[str, jax.Array], x: Any) -> Any:
        visitor = _Inputs(measure, None)
        evaluate(fn, variables, x, (), visitor)
        scores = {}
        for site in sites:
            now, kernel = visitor.made[site.name]
            for block in blocks:
                gate = gates(0.0, block)
                fresh = jnp.zeros((now.shape[0],), jnp.bool_)
                params = gate.init(None, site.conv)
                scores[f"{block}:{site.name}"] = policy.scores(
                    Observation(gate, params, kernel, _conv(site), past[site.name], now, fresh)
                )
        return {site.name: visitor.made[site.name][0] for site in sites}, scores

    past = {s.name: jnp.zeros((_images(clip[0], s), *s.in_shape), s.dtype) for s in sites}
    found: dict[str, list[np.ndarray]] = {}
    for t, x in enumerate(clip):
        past, scores = step(past, x)
        if t:
            for key, value in scores.items():
                found.setdefault(key, []).append(np.asarray(value, np.float64).ravel())
    return {
        (key.partition(":")[2], int(key.partition(":")[0])): _candidates(np.concatenate(values))
        for key, values in found.items()
    }


def _candidates(scores: np.ndarray) -> np.ndarray:
    changed = scores[scores > 0]
    if not changed.size:
        return np.linspace(1e-6, 1e-5, CANDIDATES)
    inner = np.quantile(changed, _QUANTILES)
    # Strictly increasing, so that equal scores do not waste candidates on one threshold.
    grid = np.concatenate([inner, changed.max() * np.asarray(_BEYOND)])
    return np.maximum.accumulate(grid * (1 + 1e-6 * np.arange(CANDIDATES)))


class _Carry(NamedTuple):
    """A layer's past: its dense output, and K simulated references and outputs per block size."""

    dense: jax.Array
    simulated: dict[str, Any]


def measure_sensitivity(
    fn: Callable[..., Any],
    variables: Any,
    clip: Sequence[Any],
    gates: Callable[[float, int], Any],
    policy: Any,
    *,
    blocks: Sequence[int] = (8,),
    probes: int = 2,
    seed: int = 0,
) -> Sensitivity:
    """Curves of saving and damage of every convolution.

    Args:
      fn: the dense network `fn(variables, x)`.
      variables: its own.
      clip: T >= 2 frames, B streams each.
      gates: `(threshold, block) -> gate`, a norm gate.
      policy: under which the network is to run.
      blocks: block sizes to measure.
      probes: backward passes per frame.
      seed: of the probes.

    Raises:
      ValueError: a clip without a second frame, or a policy that adds a residual of its own.
    """
    if len(clip) < 2:
        raise ValueError(f"`clip` (of {len(clip)} frames) must have at least two.")
    if not policy.recomputes and not isinstance(policy, Previous):
        raise ValueError(f"`policy` (={policy}) must be Previous or recompute what it fires.")
    scales = score_scales(fn, variables, clip, gates, blocks)
    sites = network_sites(fn, variables, clip[0])
    layers = [s for s in sites if s.conv is not None]
    step = _make_step(fn, variables, layers, gates, policy, scales, blocks)
    state = {s.name: _start(s, _images(clip[0], s), gates, policy, blocks) for s in layers}
    keys = jax.random.split(jax.random.key(seed), (len(clip), probes))
    firing: Any = None
    damage: Any = None
    energy = 0.0
    for t, x in enumerate(clip):
        state, fired, harm, size = step(state, x, jnp.asarray(t == 0), keys[t])
        if t == 0:
            continue
        fired, harm = jax.device_get((fired, harm))
        add = lambda a, b: b if a is None else jax.tree.map(np.add, a, b)  # noqa: E731
        firing, damage, energy = add(firing, fired), add(damage, harm), energy + float(size)
    curves = {
        key: LayerCurve(
            scales[key],
            np.asarray(firing[f"{key[1]}:{key[0]}"]) / (len(clip) - 1),
            np.asarray(damage[f"{key[1]}:{key[0]}"]) / energy,
        )
        for key in scales
    }
    return Sensitivity(tuple(sites), tuple(blocks), curves, 2, probes)


def _conv(site: Site) -> Conv:
    if site.conv is None:
        raise AssertionError(f"{site.name} is dense")
    return site.conv


def _start(site: Site, images: int, gates: Any, policy: Any, blocks: Sequence[int]) -> _Carry:
    conv = _conv(site)
    out = jnp.zeros((images, *conv.out_spatial, conv.out_channels), jnp.float32)
    x = jnp.zeros((images, *site.in_shape), site.dtype)

    def copies(tree: Any) -> Any:
        return jax.tree.map(lambda a: jnp.broadcast_to(a[None], (CANDIDATES, *a.shape)), tree)

    simulated = {
        str(block): copies((policy.init(x, conv, gates(0.0, block)), out)) for block in blocks
    }
    return _Carry(out, simulated)


def _make_step(
    fn: Callable[..., Any],
    variables: Any,
    layers: Sequence[Site],
    gates: Callable[[float, int], Any],
    policy: Any,
    scales: dict[tuple[str, int], np.ndarray],
    blocks: Sequence[int],
) -> Any:
    """One jitted frame: new pasts, `{block:name: (K,)}` firing and damage, and ||y||^2."""

    def measure(site: Site, x: jax.Array, kernel: jax.Array, z: jax.Array) -> Any:
        return x, kernel, z

    def forward(shifts: dict[str, jax.Array], x: Any) -> Any:
        visitor = _Inputs(measure, shifts)
        y, _ = evaluate(fn, variables, x, (), visitor)
        return y, visitor.made

    @jax.jit
    def step(state: dict[str, _Carry], x: Any, first: jax.Array, keys: jax.Array) -> Any:
        shifts = {s.name: jnp.zeros_like(state[s.name].dense) for s in layers}
        y, pullback, made = jax.vjp(lambda e: forward(e, x), shifts, has_aux=True)
        gradients = jax.vmap(lambda key: pullback(_probe(key, y))[0])(keys)
        new, firing, damage = {}, {}, {}
        for site in layers:
            past, simulated = state[site.name], {}
            for block in blocks:
                thresholds = jnp.asarray(scales[site.name, block], jnp.float32)
                key = f"{block}:{site.name}"
                simulated[str(block)], fired, error = _simulate(
                    site, gates(0.0, block), policy, thresholds, past, made[site.name], first
                )
                firing[key] = fired
                damage[key] = _damage(error, gradients[site.name], x)
            new[site.name] = _Carry(made[site.name][2].astype(jnp.float32), simulated)
        size = sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(y))
        return new, firing, damage, size

    return step


def _probe(key: jax.Array, y: Any) -> Any:
    leaves, tree = jax.tree.flatten(y)
    keys = jax.random.split(key, len(leaves))
    draws = [jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, draws)


def _simulate(
    site: Site,
    gate: Any,
    policy: Any,
    thresholds: jax.Array,
    past: _Carry,
    now: tuple[jax.Array, jax.Array, jax.Array],
    first: jax.Array,
) -> tuple[Any, jax.Array, jax.Array]:
    """K candidates of one layer on one frame: their pasts, firing `(K,)` and errors `(K, ...)`."""
    conv, (x, kernel, z) = _conv(site), now
    fresh = jnp.broadcast_to(first, (x.shape[0],))
    sizes = jnp.asarray(conv.block_sizes(gate.block))
    increment = z if policy.recomputes else z - past.dense

    def candidate(threshold: jax.Array, reference: Any, output: jax.Array) -> Any:
        seen = Observation(gate, {"threshold": threshold}, kernel, conv, reference, x, fresh)
        scores = policy.scores(seen)
        fired = gate.fire(seen.params, scores, None)
        fired = jnp.where(per_stream(fresh, fired), jnp.ones((), fired.dtype), fired)
        up = block_upsample(fired, gate.block, conv.out_spatial)[..., None] > 0
        kept = policy.kept(reference, output)
        computed = increment if policy.recomputes else kept + increment
        new = jnp.where(up, computed, kept)
        new = jnp.where(per_stream(fresh, new), z, new)
        reference = policy.update(seen, Decision(scores, fired, new))
        share = (fired * (sizes / sizes.sum())[None]).sum() / x.shape[0]
        return (reference, new), share, new - z

    references, outputs = past.simulated[str(gate.block)]
    return jax.vmap(candidate)(thresholds, references, outputs)


def _damage(error: jax.Array, gradients: jax.Array, x: Any) -> jax.Array:
    """Mean over probes of <J^T v, delta>^2, summed over streams, `(K,)`."""
    streams = number_of_streams(x)
    errors = error.reshape(error.shape[0], streams, -1)
    reach = jnp.einsum("ksn,psn->kps", errors, gradients.reshape(len(gradients), streams, -1))
    return jnp.square(reach).sum(axis=2).mean(axis=1)
