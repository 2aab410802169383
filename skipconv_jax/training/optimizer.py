"""Optimiser and learning-rate schedules of a training phase."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

Schedule = Callable[[Any], Any]


def schedule(recipe: Any, steps: int) -> Schedule:
    """Learning rate of each step.

    Args:
      recipe: `lr` and `schedule`: 'constant'; 'cosine' (to zero at the last step); 'steps' (divided
        by 10 at each share of the steps in `milestones`). `warmup` steps rise linearly from zero.
      steps: steps of the phase.

    Raises:
      ValueError: an unknown schedule, or a warm-up as long as the phase.
    """
    if not 0 <= recipe.warmup < steps:
        raise ValueError(
            f"`warmup` (={recipe.warmup}) must be at least 0 and below `steps` (={steps})."
        )
    if recipe.schedule == "constant":
        main: Schedule = optax.constant_schedule(recipe.lr)
    elif recipe.schedule == "cosine":
        main = optax.cosine_decay_schedule(recipe.lr, steps - recipe.warmup)
    elif recipe.schedule == "steps":
        bounds = {round(share * steps) - recipe.warmup: 0.1 for share in recipe.milestones}
        main = optax.piecewise_constant_schedule(recipe.lr, bounds)
    else:
        raise ValueError(
            f"`schedule` (={recipe.schedule!r}) must be 'constant', 'cosine' or 'steps'."
        )
    if not recipe.warmup:
        return main
    rise = optax.linear_schedule(0.0, recipe.lr, recipe.warmup)
    return optax.join_schedules([rise, main], [recipe.warmup])


def optimizer(recipe: Any, steps: int) -> optax.GradientTransformation:
    """Adam (Kingma & Ba, 2014) or SGD with momentum for `{'model': ..., 'gates': ...}`.

    Gates take `gate_lr_scale` times the rate: they start from one bias for all layers and have to
    travel further than pretrained kernels. Weight decay is added to the gradients of the model's
    kernels (not to biases, norms and gates), before the momentum, as the paper's framework does.

    Args:
      recipe: as for `schedule`, with `optimizer` ('adam' or 'sgd'), `momentum`, `weight_decay`,
        `clip_norm` (0: none) and `gate_lr_scale`.
      steps: steps of the phase.

    Raises:
      ValueError: an unknown optimiser, or what `schedule` refuses.
    """
    rate = schedule(recipe, steps)
    if recipe.optimizer not in ("adam", "sgd"):
        raise ValueError(f"`optimizer` (={recipe.optimizer!r}) must be 'adam' or 'sgd'.")

    def rule(scaled: Schedule) -> optax.GradientTransformation:
        if recipe.optimizer == "sgd":
            return optax.sgd(scaled, momentum=recipe.momentum)
        return optax.adam(scaled)

    def decayed(weights: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[-1] == jax.tree_util.DictKey("kernel"), weights
        )

    decay = optax.add_decayed_weights(recipe.weight_decay, decayed)
    parts = {
        "model": optax.chain(decay, rule(rate)) if recipe.weight_decay else rule(rate),
        "gates": rule(lambda count: recipe.gate_lr_scale * rate(count)),
    }
    clip = optax.clip_by_global_norm(recipe.clip_norm) if recipe.clip_norm else optax.identity()
    return with_own_promotion(optax.chain(clip, optax.multi_transform(parts, _labels)))


def with_own_promotion(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """optax mixes integer counters with floats, which strict promotion (our tests) forbids."""

    def update(grads: Any, state: Any, weights: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(grads, state, weights)

    return optax.GradientTransformation(inner.init, update)


def _labels(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {part: jax.tree.map(lambda _, p=part: p, tree) for part, tree in weights.items()}
