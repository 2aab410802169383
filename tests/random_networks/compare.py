"""Runs one drawn case on both engines and says where they differ, and why that may be.

Values and masks are compared apart. A score that lies within `MARGIN` of its threshold may fall on
either side, because the engines round differently: such a flip is recognised by running
`net.apply` on that frame again with the threshold moved by the margin, and the stream is left alone
until its next reset, when both start anew. Anything else is a difference.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax import compile_plan, skip
from skipconv_jax.ops import Previous
from tests.random_networks import draw
from tests.random_networks.draw import Skipping
from tests.random_networks.networks import Network, function, weights

MARGIN = 1e-5  # relative to the threshold
TOLERANCE = 1e-4  # of the largest value a stream's output has had since its reset
_WIDER = (1e-4, 1e-3)  # tried only to say how far beyond the margin a flip is


@dataclasses.dataclass(frozen=True)
class Case:
    """All that determines a run.

    Attributes:
      network: what is run.
      skipping: how.
      streams: B.
      frames: T.
      seed: of the clip.
      broken: whether frames hold NaN, Inf and denormal numbers.
      winograd: whether the engine may; it spreads what is not finite, so not with `broken`.
    """

    network: Network
    skipping: Skipping
    streams: int
    frames: int
    seed: int
    broken: bool
    winograd: bool


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
      refused: why the engine does not take the network; None where it does.
      compared: stream-frames whose values and masks were compared.
      flips: of masks, within the margin.
      fired: mean share of blocks.
      differences: in words, first one first.
    """

    refused: str | None
    compared: int
    flips: int
    fired: float
    differences: tuple[str, ...]


def draw_case(seed: int, index: int, frames: int, layouts: tuple[str, ...]) -> Case:
    """Case number `index` of a seed."""
    rng = np.random.default_rng([seed, index])
    network = draw.network(rng, layouts)
    x = jnp.zeros(network.frame_shape(1))
    names = list(skip(function(network)).layers(weights(network), x))
    # Zero times what is not finite is NaN: there the engine may show more of it than the network.
    broken = bool(rng.random() < 0.4) and not network.pools() and not network.spreads()
    return Case(
        network=network,
        skipping=draw.skipping(rng, names),
        streams=int(rng.integers(1, 4)),
        frames=frames,
        seed=int(rng.integers(2**31)),
        broken=broken,
        winograd=not broken and bool(rng.random() < 0.7),
    )


class Run:
    """A case with everything compiled that comparing needs."""

    def __init__(self, case: Case) -> None:
        self.case, self.fn = case, function(case.network)
        variables = weights(case.network)
        x = jnp.zeros(case.network.frame_shape(case.streams))
        names = list(skip(self.fn).layers(variables, x))
        how = case.skipping.among(names)
        self.net = skip(
            self.fn, how.rules, gate=how.gate, policy=how.policy, implementation="dense"
        )
        self.layers = {n: rule for n, (_, rule) in self.net.layers(variables, x).items()}
        key = jax.random.key(case.network.seed)
        self.params, self.start = self.net.init(variables, x, key=key)
        self.plan = compile_plan(self.net, self.params, x, engine="native", winograd=case.winograd)

    @functools.cached_property
    def clip(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames and resets."""
        case = self.case
        return draw.clip(
            np.random.default_rng(case.seed),
            case.network.frame_shape(case.streams),
            case.frames,
            broken=case.broken,
        )

    def step(self, params: Any, state: Any, x: Any, reset: Any) -> tuple[Any, Any, Any]:
        """One frame of `net.apply`: outputs, state, masks."""
        y, state = self.net.apply(params, self.net.reset(state, reset), x)
        return y, state, {name: state[name].fired for name in self.layers}

    def _scanned(self, step: Any, start: Any) -> Any:
        def run(arguments: Any, clip: Any, resets: Any) -> Any:
            def body(state: Any, frame: Any) -> Any:
                y, state, fired = step(arguments, state, *frame)
                return state, (y, fired)

            return jax.lax.scan(body, start, (clip, resets))[1]

        return jax.jit(run)

    @functools.cached_property
    def on_apply(self) -> Any:
        """`(params, clip, resets)` to outputs and masks of every frame, by `net.apply`."""
        return self._scanned(self.step, self.start)

    @functools.cached_property
    def on_plan(self) -> Any:
        """`(constants, clip, resets)` to outputs and masks of every frame, by the native plan."""

        def step(constants: Any, state: Any, x: Any, reset: Any) -> Any:
            y, state, masks = self.plan.apply(self.plan.reset(state, reset), x, constants)
            return y, state, self.plan.fired(masks)

        return self._scanned(step, self.plan.init_state(self.case.streams))

    @functools.cached_property
    def _state_at(self) -> Any:
        def run(clip: Any, resets: Any, t: Any) -> Any:
            def body(i: Any, state: Any) -> Any:
                return self.step(self.params, state, clip[i], resets[i])[1]

            return jax.lax.fori_loop(0, t, body, self.start)

        return jax.jit(run)

    def masks_near(self, t: int, name: str, margin: float) -> list[np.ndarray]:
        """Masks of a layer at a frame with its threshold lowered and raised by a margin."""
        clip, resets = self.clip
        state = self._state_at(clip, resets, jnp.asarray(t))
        step = jax.jit(self.step)
        found = []
        for sign in (-1, 1):
            gates = {**self.params["gates"]}
            gates[name] = _shifted(gates[name], sign * margin)
            _, _, fired = step({**self.params, "gates": gates}, state, clip[t], resets[t])
            found.append(np.asarray(fired[name]))
        return found

    def open_gates(self) -> dict[str, Any]:
        """Gate parameters with which everything that changed is computed."""
        return {name: _opened(parts) for name, parts in self.params["gates"].items()}


def _shifted(parts: dict[str, jax.Array], margin: float) -> dict[str, jax.Array]:
    if "threshold" in parts:
        return {"threshold": parts["threshold"] * (1 + margin)}
    # A learned gate's logit is compared with 0: moved by the margin of a logit of about 1.
    return {**parts, "bias": parts["bias"] + margin} if "bias" in parts else parts


def _opened(parts: dict[str, jax.Array]) -> dict[str, jax.Array]:
    if "threshold" in parts:
        return {"threshold": jnp.zeros_like(parts["threshold"])}
    return {n: jnp.zeros_like(a) if n == "kernel" else jnp.ones_like(a) for n, a in parts.items()}


def compare(case: Case) -> Outcome:
    """Runs a case: native against `net.apply`, then both against dense with all gates open."""
    try:
        run = Run(case)
    except ValueError as error:
        return Outcome(str(error), 0, 0, 0.0, ())
    clip, resets = run.clip
    theirs = jax.device_get(run.on_apply(run.params, clip, resets))
    ours = jax.device_get(run.on_plan(run.plan.constants, clip, resets))
    compared, flips, differences = _against_apply(run, theirs, ours)
    if not differences:
        differences = _against_dense(run)
    shares = [float(np.nanmean(m)) for m in theirs[1].values()]
    return Outcome(None, compared, flips, float(np.mean(shares or [1.0])), tuple(differences))


def _against_apply(run: Run, theirs: Any, ours: Any) -> tuple[int, int, list[str]]:
    """Stream-frames compared, flips, and the first difference."""
    (wanted, their_masks), (got, our_masks) = theirs, ours
    if set(our_masks) != set(their_masks):
        return 0, 0, [f"layers {sorted(set(our_masks) ^ set(their_masks))} are skipped by one"]
    scale, compared, flips = _scales(run, wanted), 0, 0
    skipped = np.zeros(run.case.streams, bool)
    for t in range(run.case.frames):
        skipped &= ~run.clip[1][t]
        for b in np.flatnonzero(~skipped):
            name = next(
                (n for n in run.layers if (our_masks[n][t, b] != their_masks[n][t, b]).any()), None
            )
            if name is not None:
                why = _flip(run, t, b, name, our_masks[name][t, b], their_masks[name][t, b])
                if why:
                    return compared, flips, [why]
                flips, skipped[b] = flips + 1, True
                continue
            if why := _unequal(t, b, wanted, got, scale, "native against net.apply"):
                return compared, flips, [why]
            compared += 1
    return compared, flips, []


def _flip(run: Run, t: int, b: int, name: str, ours: np.ndarray, theirs: np.ndarray) -> str:
    """Empty where the masks differ at the threshold only, else in words."""
    differing = ours != theirs
    for margin in (MARGIN, *_WIDER):
        near = [mask[b] for mask in run.masks_near(t, name, margin)]
        if (near[0] != near[1])[differing].all():
            if margin == MARGIN:
                return ""
            break
    else:
        margin = np.inf
    blocks = [tuple(map(int, at)) for at in np.argwhere(differing)[:4]]
    return (
        f"frame {t}, stream {b}: mask of {name} ({run.layers[name]}) at blocks {blocks}: native "
        f"{ours[differing][:4]}, net.apply {theirs[differing][:4]}; the scores lie "
        f"{'within ' + format(margin, 'g') if np.isfinite(margin) else 'far'} of the threshold"
    )


def _scales(run: Run, outputs: Any) -> list[np.ndarray]:
    """Largest finite magnitude of each output and stream since its reset, `(T, B)`."""
    scales = []
    for y in outputs:
        flat = np.abs(y.reshape(*y.shape[:1], run.case.streams, -1))
        now = np.where(np.isfinite(flat), flat, 0).max(axis=-1)
        for t in range(1, len(now)):
            now[t] = np.where(run.clip[1][t], now[t], np.maximum(now[t], now[t - 1]))
        scales.append(np.maximum(now, 1e-3))
    return scales


def _unequal(t: int, b: int, wanted: Any, got: Any, scale: Any, who: str) -> str:
    """In words how the outputs of one stream at one frame differ; empty where they don't."""
    for i, (y, z, most) in enumerate(zip(wanted, got, scale, strict=True)):
        expected, found = y[t].reshape(most.shape[1], -1)[b], z[t].reshape(most.shape[1], -1)[b]
        finite = np.isfinite(expected)
        if (finite != np.isfinite(found)).any():
            lost = int((~finite & np.isfinite(found)).sum())
            made = int((finite & ~np.isfinite(found)).sum())
            return (
                f"frame {t}, stream {b}: {who}: output {i} lost {lost} and made {made} non-finite"
            )
        error = np.abs(np.where(finite, expected, 0) - np.where(finite, found, 0)).max(initial=0)
        if error > TOLERANCE * most[t, b]:
            return (
                f"frame {t}, stream {b}: {who}: output {i} differs by {error:.2e}, values reach "
                f"{most[t, b]:.2e}"
            )
    return ""


def _against_dense(run: Run) -> list[str]:
    """The first difference of either engine from the dense network, gates open."""
    clip, resets = run.clip
    gates = run.open_gates()
    dense = jax.device_get(
        jax.jit(lambda v, xs: jax.lax.map(lambda x: run.fn(v, x), xs))(run.params["model"], clip)
    )
    made = {
        "net.apply": run.on_apply({**run.params, "gates": gates}, clip, resets)[0],
        "native": run.on_plan(run.plan.with_gates(gates), clip, resets)[0],
    }
    scale = _scales(run, dense)
    tainted = np.zeros(run.case.streams, bool)
    adds = any(isinstance(rule.policy, Previous) for rule in run.layers.values())
    for t in range(run.case.frames):
        tainted &= ~resets[t]
        for b in np.flatnonzero(~tainted):
            for who, outputs in made.items():
                where = f"{who} with all gates open against dense"
                if why := _unequal(t, b, dense, jax.device_get(outputs), scale, where):
                    return [why]
        # What is added to stays broken until a reset: Eq. 3 carries NaN on.
        broken = ~np.isfinite(clip[t]).reshape(run.case.streams, -1).all(axis=1)
        tainted |= broken & adds
    return []
