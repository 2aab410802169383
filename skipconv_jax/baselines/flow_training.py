"""Trains Deep Feature Flow: detector and flow network together, through the detection loss."""

from typing import Any

import jax
import jax.numpy as jnp

from skipconv_jax.baselines.feature_flow import FeatureFlow
from skipconv_jax.baselines.flow import Guide, warp_levels
from skipconv_jax.baselines.video_net import select
from skipconv_jax.training.step import Batch, Figures, LossFn, Task, join

Tree = Any


def flow_loss(net: FeatureFlow, task: Task, pairs: int = 1, photometric: float = 0.0) -> LossFn:
    """The detection loss of frames that are warped from their clip's first, as published.

    Of each clip `pairs` frames d are drawn uniformly without replacement from 0 ... T - 1, so T is
    the interval to train for; d = 0 is the key frame itself, not warped. The gradient reaches the
    detector through both frames' roles and the flow network through the warp. Batch statistics are
    the running ones and stay as they are, as in the published training.

    The published flow network was trained on flow before. `photometric` makes up for that: its
    weight times mean sqrt((W(x_k, M) - x_t)^2 + 1e-6), on frames at twice the field's resolution.

    Args:
      net: with a flow network.
      task: gives the loss terms of a batch of frames.
      pairs: frames of a clip that count.
      photometric: weight of that term; 0 leaves it out.

    Returns:
      `(weights, stats, batch, rng) -> (loss, (figures, stats))`; every array of the batch is
      `(B, T, ...)`. `figures.extra['flow_pixels']` is the mean length of the flow.

    Raises:
      ValueError: less than one pair, or (when called) more than a clip has frames.
    """
    if pairs < 1:
        raise ValueError(f"`pairs` (={pairs}) must be at least 1.")

    def loss_fn(weights: dict[str, Tree], stats: Tree, batch: Batch, rng: jax.Array) -> Any:
        variables = join(weights["model"], stats)
        offsets, drawn = draw_frames(batch, rng, pairs)
        x = drawn.pop("frames")
        first = batch["frames"][:, 0]
        levels = net.extract(variables, net.prepare(first))
        levels, frame = jax.tree.map(lambda a: jnp.repeat(a, pairs, axis=0), (levels, first))
        key, now = net.prepare(frame), net.prepare(x)
        guide = net.estimate(variables, key, now)
        warped = warp_levels(levels, guide, (x.shape[1], x.shape[2]))
        outputs = net.detect(variables, select(offsets == 0, levels, warped))
        terms = dict(task.losses(outputs, drawn))
        if photometric:
            terms["photometric"] = photometric * photometric_error(key, now, guide.field)
        loss = jnp.stack(list(terms.values())).sum()
        field = jax.lax.stop_gradient(guide.field)
        length = jnp.sqrt(jnp.square(field).sum(axis=-1)).mean()
        return loss, (Figures(loss, terms, {"flow_pixels": length}), stats)

    return loss_fn


def draw_frames(batch: Batch, rng: jax.Array, count: int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`count` frames of each clip without replacement: their offsets (B count,), their arrays.

    Args:
      batch: arrays `(B, T, ...)`.
      rng: key.
      count: frames per clip.

    Raises:
      ValueError: more frames than a clip has.
    """
    clips, length = batch["frames"].shape[:2]
    if count > length:
        raise ValueError(f"`pairs` (={count}) must be at most the clips' length, {length}.")
    order = jnp.argsort(jax.random.uniform(rng, (clips, length)), axis=1)[:, :count]
    rows = jnp.repeat(jnp.arange(clips), count)
    offsets = order.reshape(-1)
    return offsets, {name: leaf[rows, offsets] for name, leaf in batch.items()}


def photometric_error(key: jax.Array, now: jax.Array, field: jax.Array) -> jax.Array:
    """Mean Charbonnier distance of a frame from the warped key frame, at twice the field's size."""
    shape = (key.shape[0], 2 * field.shape[1], 2 * field.shape[2], key.shape[3])
    small, target = (jax.image.resize(x, shape, "linear") for x in (key, now))
    moved = warp_levels([small], Guide(field), (key.shape[1], key.shape[2]))[0]
    return jnp.sqrt(jnp.square(moved - target) + 1e-6).mean()
