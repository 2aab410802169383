"""One step of training: a batch of clips in, new weights and named figures out.

The dense step treats a clip as a batch of images. The gated step runs the T frames through
`lax.scan` with one skip state per convolution, samples the gates (straight-through), and minimises

    mean_t task loss + beta * 1/(T-1) sum_{t>=2} sum_l m_l E[g_l] / sum_l m_l           (Eq. 9)
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from skipconv_jax import macs
from skipconv_jax.program.canonical import for_this_backend
from skipconv_jax.warp import Translation, equivariance_loss

Tree = Any
Batch = Mapping[str, jax.Array]
Forward = Callable[..., tuple[Any, Tree]]


class Task(Protocol):
    """What training asks of a task."""

    def losses(self, outputs: Any, targets: Batch) -> dict[str, jax.Array]:
        """Named scalar loss terms of a batch of frames; their sum is minimised."""
        ...


class TrainState(NamedTuple):
    """Everything a step changes, as one donatable, checkpointable pytree.

    Attributes:
      step: () int32, steps done.
      weights: `{'model': trained kernels, 'gates': gate parameters ({} in the dense phase)}`.
      stats: the network's other collections (batch statistics).
      opt_state: the optimiser's state.
      healthy: () bool; once a loss or gradient is not finite it stays False and nothing changes any
        more, so that the weights which led there can be examined.
    """

    step: jax.Array
    weights: dict[str, Tree]
    stats: dict[str, Tree]
    opt_state: Tree
    healthy: jax.Array

    @property
    def variables(self) -> dict[str, Tree]:
        """The network's variables, as `model.apply` takes them."""
        return join(self.weights["model"], self.stats)


class Figures(NamedTuple):
    """What a step reports, all scalars: the loss, its terms, and other named values."""

    loss: jax.Array
    terms: dict[str, jax.Array]
    extra: dict[str, jax.Array]


LossFn = Callable[[dict[str, Tree], Tree, Batch, jax.Array], tuple[jax.Array, tuple[Figures, Tree]]]


def split(variables: Mapping[str, Tree]) -> tuple[Tree, dict[str, Tree]]:
    """Trained collection and the others."""
    return variables["params"], {k: v for k, v in variables.items() if k != "params"}


def join(params: Tree, stats: Mapping[str, Tree]) -> dict[str, Tree]:
    """Inverse of `split`."""
    return {"params": params, **stats}


def create_state(
    variables: Mapping[str, Tree], gates: Tree, optimizer: optax.GradientTransformation
) -> TrainState:
    """State before the first step, from network variables and gate parameters."""
    params, stats = split(variables)
    weights = {"model": params, "gates": gates}
    # Copies, because the step donates its state and the caller may go on using the variables.
    weights, stats = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), (weights, stats))
    opt_state = optimizer.init(weights)
    return TrainState(jnp.int32(0), weights, stats, opt_state, jnp.bool_(True))


def _frames_first(batch: Batch) -> Batch:
    """(B, T, ...) to (T, B, ...): scan runs over the first axis."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), dict(batch))


def _parts(batch: Batch) -> tuple[jax.Array, Batch]:
    return batch["frames"], {k: v for k, v in batch.items() if k != "frames"}


def dense_loss(
    forward: Forward, task: Task, equivariance: float = 0.0, farthest: float = 8.0
) -> LossFn:
    """Loss of the dense network on clips.

    Args:
      forward: `(variables, frames (N, H, W, C)) -> (outputs, new statistics)`.
      task: gives the loss terms.
      equivariance: weight of the loss of section 3.3 (`skipconv_jax.warp.equivariance_loss`), for
        networks that are to run with warped residuals; 0 leaves it out.
      farthest: pixels that each image is shifted by at most for it, down and right apart.

    Returns:
      `(weights, stats, batch, rng) -> (loss, (figures, new statistics))`; every array of the batch
      is `(B, T, ...)`.

    Raises:
      ValueError: a negative weight, or shifts below a pixel.
    """
    if equivariance < 0 or farthest < 1:
        raise ValueError(
            f"`equivariance` (={equivariance}) must be at least 0 and `farthest` (={farthest}) at "
            "least 1 pixel."
        )

    def loss_fn(weights: dict[str, Tree], stats: Tree, batch: Batch, rng: jax.Array) -> Any:
        images = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), dict(batch))
        frames, targets = _parts(images)
        variables, moved = join(weights["model"], stats), {}
        if equivariance:
            drawn = jax.random.uniform(rng, (len(frames), 2), minval=-farthest, maxval=farthest)
            error, made = equivariance_loss(
                forward, variables, frames, Translation(drawn).rounded()
            )
            moved["equivariance"] = equivariance * error
        else:
            made = forward(variables, frames)
        outputs, stats = made
        terms = task.losses(outputs, targets) | moved
        loss = jnp.stack(list(terms.values())).sum()
        return loss, (Figures(loss, terms, {}), stats)

    return loss_fn


def gated_loss(net: Any, table: Any, task: Task, beta: float, remat: bool = False) -> LossFn:
    """Loss of the skipped network on clips, gates sampled, Eq. 9 weighted by `beta`.

    Args:
      net: `skip(forward, rules)` of a `forward` as in `dense_loss`.
      table: `net.table(...)`, which holds the m_l.
      task: gives the loss terms of a batch of frames.
      beta: weight of the gate loss.
      remat: recompute activations in the backward pass: memory of one frame instead of T.
    """

    def loss_fn(weights: dict[str, Tree], stats: Tree, batch: Batch, rng: jax.Array) -> Any:
        clip = _frames_first(batch)
        length = clip["frames"].shape[0]
        if length < 2:
            raise ValueError(
                f"`batch` (clips of {length} frame) must have at least 2 frames a clip, the first "
                "being the reference frame; raise the gated phase's `clip_length`."
            )
        _, skip_state = net.init(join(weights["model"], stats), clip["frames"][0], key=rng)

        def frame_step(carry: Any, frame: Any) -> Any:
            skip_state, stats = carry
            inputs, key = frame
            frames, targets = _parts(inputs)
            params = {"model": join(weights["model"], stats), "gates": weights["gates"]}
            (outputs, stats), skip_state = net.apply(params, skip_state, frames, rng=key)
            gate = macs.gate_loss(table, skip_state)
            return (skip_state, stats), (task.losses(outputs, targets), gate)

        body = jax.checkpoint(frame_step) if remat else frame_step
        keys = jax.random.split(rng, length)
        (_, stats), (terms, gate) = jax.lax.scan(body, (skip_state, stats), (clip, keys))
        terms = {name: term.mean() for name, term in terms.items()}
        # The first frame computes everything whatever the gates say: it is no part of Eq. 9.
        firing = gate[1:].mean()
        terms["gate"] = beta * firing
        loss = jnp.stack(list(terms.values())).sum()
        return loss, (Figures(loss, terms, {"macs_share": firing}), stats)

    return loss_fn


def make_step(loss_fn: LossFn, optimizer: optax.GradientTransformation, where: Any = None) -> Any:
    """Jitted `(state, batch, key) -> (state, figures)`; donates the state.

    `key` is the run's key: each step folds its own number in, so that a resumed run draws what the
    uninterrupted one would have drawn. `where` is the sharding of what comes out, so that every
    process of several has all of it; None leaves that to JAX.
    """

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Figures]:
        rng = jax.random.fold_in(key, state.step)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (figures, stats)), grads = grad_fn(state.weights, state.stats, batch, rng)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & _all_finite(stats)
        healthy = state.healthy & finite
        updates, opt_state = optimizer.update(grads, state.opt_state, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        changed = (state.step + 1, weights, stats, opt_state)
        kept = (state.step, state.weights, state.stats, state.opt_state)
        chosen = jax.tree.map(lambda new, old: jnp.where(healthy, new, old), changed, kept)
        figures = figures._replace(extra={**figures.extra, "grad_norm": norm})
        return TrainState(chosen[0], chosen[1], chosen[2], chosen[3], healthy), figures

    return jax.jit(for_this_backend(step), donate_argnums=0, out_shardings=where)


def _all_finite(tree: Tree) -> jax.Array:
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all() if leaves else jnp.bool_(True)


def culprits(loss_fn: LossFn, state: TrainState, batch: Batch, key: jax.Array) -> list[str]:
    """Names what is not finite in the step that follows `state`: inputs, weights, terms, gradients.

    Args:
      loss_fn: the loss of the failed step.
      state: the state the failed step started from (a step that fails leaves it unchanged).
      batch: the batch of the failed step.
      key: the run's key.
    """
    rng = jax.random.fold_in(key, state.step)
    grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (_, (figures, stats)), grads = grad_fn(state.weights, state.stats, batch, rng)
    checked = {
        "input": dict(batch),
        "weight": state.weights,
        "loss term": figures.terms,
        "batch statistic": stats,
        "gradient of": grads,
    }
    found = []
    for kind, tree in checked.items():
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        bad = [_path(path) for path, leaf in leaves if not bool(jnp.isfinite(leaf).all())]
        found += [f"{kind} {name}" for name in bad]
    return found


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
