r"""Gates that learn from the dense network on clips without labels.

Minimises over clips of T frames, gates sampled (straight-through), the first frame a reference,

    sum_t error(y~_t, y_t) / sum_t scale(y_t)  +  beta / (T - 1) sum_t sum_l m_l E[g_l] / sum_l m_l

y_t being the dense network's outputs and (error, scale) what counts of them for the task; the
second term is Eq. 9. A trade-off is a run of several betas, each from the gates of the one before.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from skipconv_jax import macs
from skipconv_jax.ops import GumbelGate
from skipconv_jax.ops.gates import GateParams
from skipconv_jax.program.walk import Site
from skipconv_jax.training.loop import Options, Phase, run
from skipconv_jax.training.optimizer import with_own_promotion
from skipconv_jax.training.step import Figures, LossFn, TrainState
from skipconv_jax.transform import Rule, SkipNet, skip
from skipconv_jax.tuning.gate_plan import GatePlan
from skipconv_jax.tuning.sensitivity import network_sites
from skipconv_jax.tuning.trials import Loss

# Logit of a gate of magnitudes where nothing changed: fires in 2 of 100 draws.
_CLOSED = -4.0
# Published start of signed gates: fires in 84 of 100.
_OPEN = 1.65


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How gates are trained.

    Attributes:
      betas: weights of the cost, in the order they are run.
      steps: of each beta.
      clip_length: T, frames of a clip.
      batch: clips of a step.
      lr: of the gates, relative to the size each parameter starts with (Adam, cosine to 0).
      block: side of the blocks that fire together.
      sees: 'magnitude' or 'signed', see `GumbelGate`.
      threshold: of the Input-Norm gates that magnitude gates start as: one, or by layer.
      joint: 0 leaves the network frozen; else the rate of its own parameters, relative too.
      seed: of clips and draws.
    """

    betas: tuple[float, ...] = (0.1, 0.3)
    steps: int = 200
    clip_length: int = 6
    batch: int = 1
    lr: float = 0.03
    block: int = 8
    sees: str = "magnitude"
    threshold: float | Mapping[str, float] = 5e-3
    joint: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.betas or min(self.betas) < 0:
            raise ValueError(f"`betas` (={self.betas}) must be one or more, none negative.")
        if self.clip_length < 2:
            raise ValueError(
                f"`clip_length` (={self.clip_length}) must be at least 2: the first frame is the "
                "reference frame."
            )
        if min(self.steps, self.batch) < 1 or self.lr <= 0 or self.joint < 0:
            raise ValueError(
                f"`steps` (={self.steps}) and `batch` (={self.batch}) must be at least 1, `lr` "
                f"(={self.lr}) positive and `joint` (={self.joint}) not negative."
            )

    @property
    def gate(self) -> GumbelGate:
        """The gate that is trained."""
        return GumbelGate(
            block=self.block, sees=self.sees, bias_init=_CLOSED if self.closes else _OPEN
        )

    @property
    def closes(self) -> bool:
        """Whether gates start closed where nothing changes."""
        return self.sees == "magnitude"


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What one beta gave.

    Attributes:
      beta: weight of the cost.
      gate_plan: with trained gates.
      variables: of the network: those given, unless they were tuned along.
    """

    beta: float
    gate_plan: GatePlan
    variables: Any


class Clips:
    """Endless clips of consecutive frames: step n draws the same ones in every run.

    Args:
      frames: `(N, H, W, 3)`, or parts of a video `(N, ...)` each, that clips do not cross.
      length: T.
      batch: clips of a step.
      seed: of where they start.

    Raises:
      ValueError: no part as long as a clip.
    """

    def __init__(self, frames: Sequence[np.ndarray], length: int, batch: int, seed: int) -> None:
        self._parts = [part for part in frames if len(part) >= length]
        if not self._parts:
            raise ValueError(f"`frames` must hold {length} that follow each other, or more.")
        self._length, self._batch, self._seed, self._at = length, batch, seed, 0
        starts = [len(part) - length + 1 for part in self._parts]
        self._starts = np.cumsum([0, *starts])

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return self

    def __next__(self) -> Mapping[str, np.ndarray]:
        """`frames` (B, T, H, W, 3)."""
        rng = np.random.default_rng((self._seed, self._at))
        self._at += 1
        return {"frames": np.stack([self._clip(rng) for _ in range(self._batch)])}

    def _clip(self, rng: np.random.Generator) -> np.ndarray:
        drawn = int(rng.integers(self._starts[-1]))
        part = int(np.searchsorted(self._starts, drawn, "right")) - 1
        start = drawn - int(self._starts[part])
        return self._parts[part][start : start + self._length]

    def get_state(self) -> dict[str, int]:
        """Steps drawn."""
        return {"step": self._at}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes on from there."""
        self._at = int(state["step"])


def fit(
    fn: Callable[..., Any],
    variables: Any,
    frames: Sequence[np.ndarray],
    loss: Loss,
    recipe: Recipe,
    workdir: Path,
    *,
    policy: Any,
    options: Options | None = None,
) -> list[Fitted]:
    """Trains gates on clips, one beta after the other, each in a folder of its own of `workdir`.

    Memory: the backward pass recomputes a frame's activations, so that it is about that of one
    frame, whatever T, with a state of every layer for each frame.

    Args:
      fn: the dense network `fn(variables, x)`, x `(B, H, W, 3)`.
      variables: its own, trained.
      frames: parts of videos `(N, H, W, 3)`.
      loss: how far outputs are from the dense ones, of a frame.
      recipe: betas, steps and so on.
      workdir: of checkpoints and metrics.
      policy: under which the network is to run.
      options: of the loop; `resume` continues what was stopped, betas that are done are read.

    Returns:
      One `Fitted` per beta.

    Raises:
      TrainingDiverged: something is not finite.
      ValueError: a folder that holds a run, without `resume`; too few frames.
    """
    net = skip(fn, gate=recipe.gate, policy=policy)
    first = jnp.asarray(np.stack([frames[0][0]] * recipe.batch))
    table = net.table(variables, first)
    layers = net.layers(variables, first)
    sites = network_sites(fn, variables, first)
    gates = starting_gates(net, variables, first, [site for site, _ in layers.values()], recipe)
    model = variables if recipe.joint else {}
    found = []
    for beta in recipe.betas:
        phase = Phase(
            f"beta{beta:g}",
            recipe.steps,
            fit_loss(net, table, loss, beta),
            relative_adam({"model": model, "gates": gates}, recipe),
            _start(model, gates, variables, recipe),
            lambda: Clips(frames, recipe.clip_length, recipe.batch, recipe.seed),
        )
        state = run(phase, workdir, recipe.seed, options or Options())
        weights = jax.device_get(state.weights)
        gates = weights["gates"]
        model = weights["model"] if recipe.joint else {}
        gate_plan = _plan(sites, layers, gates, policy, beta, recipe)
        found.append(Fitted(beta, gate_plan, model or variables))
    return found


def fit_loss(net: SkipNet, table: macs.Table, loss: Loss, beta: float) -> LossFn:
    """Disagreement with the dense network plus beta times Eq. 9, see the module.

    Args:
      net: the skipped network.
      table: of it.
      loss: of a frame.
      beta: weight of the cost.

    Returns:
      `(weights, stats, batch, rng) -> (loss, (figures, stats))`; `stats['variables']` is the dense
      network, `weights['model']` the skipped one's own, or {} where it is frozen.
    """

    def loss_fn(weights: dict[str, Any], stats: Any, batch: Any, rng: jax.Array) -> Any:
        teacher = stats["variables"]
        clip = jnp.swapaxes(batch["frames"], 0, 1)
        dense = jax.lax.stop_gradient(jax.lax.map(lambda x: net.fn(teacher, x), clip))
        params = {"model": weights["model"] or teacher, "gates": weights["gates"]}
        _, state = net.init(teacher, clip[0], key=rng)

        def frame_step(state: Any, frame: Any) -> Any:
            x, wanted, key = frame
            y, state = net.apply(params, state, x, rng=key)
            error, scale = loss(y, wanted)
            return state, (error.sum(), scale.sum(), macs.gate_loss(table, state))

        keys = jax.random.split(rng, len(clip))
        body = jax.checkpoint(frame_step)
        _, (error, scale, cost) = jax.lax.scan(body, state, (clip, dense, keys))
        # The reference frame is computed whole whatever the gates say. A clip in which nothing is
        # to be found asks for nothing but silence: its scale is that of one sure answer.
        match = error[1:].sum() / jnp.maximum(scale[1:].sum(), 1.0)
        share = cost[1:].mean()
        terms = {"match": match, "gate": beta * share}
        return match + beta * share, (
            Figures(match + beta * share, terms, {"macs_share": share}),
            stats,
        )

    return loss_fn


def starting_gates(
    net: SkipNet, variables: Any, x: Any, sites: Sequence[Site], recipe: Recipe
) -> dict[str, GateParams]:
    """Gates before the first step: of magnitudes, the Input-Norm gates of the recipe's thresholds.

    Signed ones start as published, their kernels scaled to residuals of that size.

    Raises:
      ValueError: a layer without a threshold, or one that is not positive.
    """
    initial = net.init_gates(variables, x, key=jax.random.key(recipe.seed))
    started = {}
    for site in sites:
        assert site.conv is not None
        given = recipe.threshold
        eps = given.get(site.name, math.nan) if isinstance(given, Mapping) else given
        if not eps > 0:
            raise ValueError(f"`threshold` (={eps}) of {site.name!r} must be positive.")
        gate = initial[site.name]
        if recipe.closes:
            fan = math.prod(site.conv.window) * site.conv.in_channels
            kernel = jnp.full_like(gate["kernel"], -_CLOSED / (eps * fan))
        else:
            kernel = gate["kernel"] / eps
        started[site.name] = {"kernel": kernel, "bias": gate["bias"]}
    return started


def relative_adam(weights: dict[str, Any], recipe: Recipe) -> optax.GradientTransformation:
    """Adam whose rate is relative to the root mean square each array starts with.

    Kernels of gates differ by the scale of what they see, a thousandfold between layers.
    """
    rate = optax.cosine_decay_schedule(1.0, recipe.steps)
    factors = {"gates": recipe.lr, "model": recipe.joint}

    def size(part: str, leaf: Any) -> float:
        mean = float(np.sqrt(np.mean(np.square(np.asarray(leaf, np.float64)))))
        return factors[part] * (mean if mean else 1e-3)

    sizes = {
        part: jax.tree.map(functools.partial(size, part), tree) for part, tree in weights.items()
    }

    def scaled(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        return jax.tree.map(lambda u, s: u * jnp.float32(s), updates, sizes), state

    scale = optax.GradientTransformation(lambda params: optax.EmptyState(), scaled)
    return with_own_promotion(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate), scale))


def _start(model: Any, gates: Any, variables: Any, recipe: Recipe) -> Callable[[], TrainState]:
    def start() -> TrainState:
        # Copies, because a step donates its state.
        weights, stats = jax.tree.map(
            lambda leaf: jnp.array(leaf, copy=True),
            ({"model": model, "gates": gates}, {"variables": variables}),
        )
        opt_state = relative_adam(weights, recipe).init(weights)
        return TrainState(jnp.int32(0), weights, stats, opt_state, jnp.bool_(True))

    return start


def _plan(
    sites: Sequence[Site],
    layers: Mapping[str, tuple[Site, Rule]],
    gates: Mapping[str, GateParams],
    policy: Any,
    beta: float,
    recipe: Recipe,
) -> GatePlan:
    return GatePlan.make(
        sites,
        {name: rule.gate for name, (_, rule) in layers.items()},
        policy,
        gates,
        beta=beta,
        steps=recipe.steps,
        clip_length=recipe.clip_length,
        joint=recipe.joint,
        seed=recipe.seed,
    )
