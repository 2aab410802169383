"""Moves the state of a layer, or of every layer of a network, to where the frame has moved."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from skipconv_jax.ops.geometry import Conv, block_max, block_upsample
from skipconv_jax.ops.policies import Accumulate, Previous
from skipconv_jax.ops.state import SkipState
from skipconv_jax.transform import NetState, SkipNet
from skipconv_jax.warp.motion import (
    Carried,
    Motion,
    extended,
    inside,
    largest_neighbour,
    resample,
)


@functools.singledispatch
def warp_reference(
    policy: Any, reference: Any, source_in: jax.Array, source_out: jax.Array, conv: Conv, block: int
) -> Any:
    """T applied to a policy's reference; register a policy of your own.

    Args:
      policy: of the layer.
      reference: its part of the state.
      source_in: `(B, H, W, 2)`, where positions of the input, padding included, come from; the
        warped reference is of that size.
      source_out: `(B, H', W', 2)`, where positions of the output come from.
      conv: geometry.
      block: side of the gate's blocks.

    Raises:
      ValueError: a policy that can't be moved.
    """
    raise ValueError(
        f"`policy` (={policy}) can't be warped: it holds past inputs that no longer lie where "
        "their outputs do; use Accumulate (no drift) or Previous (Eq. 11)."
    )


@warp_reference.register
def _(
    policy: Previous,
    reference: jax.Array,
    source_in: jax.Array,
    source_out: jax.Array,
    conv: Conv,
    block: int,
) -> jax.Array:
    del policy, source_out, conv, block
    return resample(reference, source_in)


@warp_reference.register
def _(
    policy: Accumulate,
    reference: dict[str, jax.Array],
    source_in: jax.Array,
    source_out: jax.Array,
    conv: Conv,
    block: int,
) -> dict[str, jax.Array]:
    """A moved block inherits the largest sum of the blocks it is made of, so the bound holds."""
    del policy
    skipped = block_upsample(reference["skipped"], block, conv.out_spatial)
    skipped = block_max(largest_neighbour(skipped, source_out), block)
    return {"frame": resample(reference["frame"], source_in), "skipped": skipped}


def layer_sources(motion: Motion, conv: Conv, frame: tuple[int, ...]) -> tuple[Any, jax.Array]:
    """Sources of a layer's input, padding included, and of its output, for one image a stream."""
    if isinstance(motion, Carried):
        source_in, source_out = motion.layer(conv, frame)
    else:
        maps = conv.in_spatial, conv.out_spatial
        source_in, source_out = (motion.source(spatial, frame) for spatial in maps)
    return extended(source_in, conv.padding), source_out


def warp_layer(
    state: SkipState, motion: Motion, conv: Conv, block: int, policy: Any, frame: tuple[int, ...]
) -> SkipState:
    """State of one layer before a frame that moved: T on the reference, T~ on the output.

    Args:
      state: of the layer, after the last frame.
      motion: of the frame, one per stream.
      conv: geometry of the layer.
      block: side of its gate's blocks.
      policy: of the layer, `Previous` or `Accumulate`.
      frame: `(H, W)` the motion is measured on.

    Returns:
      The state for `skip_conv`: the reference reaches into the padding, where what left the frame
      is gone and counts as changed; blocks with outputs that were not seen are marked stale.

    Raises:
      ValueError: a layer without two spatial axes, or a policy that can't be warped.
    """
    if conv.rank != 2:
        raise ValueError(
            f"`conv` (spatial {conv.in_spatial}) must have two spatial axes to be warped; leave "
            "other convolutions dense with the rule (name, None)."
        )
    images = state.output.shape[0]
    sources = layer_sources(motion, conv, frame)
    source_in, source_out = (per_image(source, images) for source in sources)
    unseen = ~inside(source_out, conv.out_spatial)
    return dataclasses.replace(
        state,
        reference=warp_reference(policy, state.reference, source_in, source_out, conv, block),
        output=resample(state.output, source_out),
        stale=block_max(unseen.astype(jnp.float32), block) > 0,
    )


def per_image(source: jax.Array, images: int) -> jax.Array:
    """Layers that see several images of a stream move them all alike."""
    return jnp.repeat(source, images // source.shape[0], axis=0)


@dataclasses.dataclass(frozen=True)
class Warp:
    """Moves the state of a whole network; pure, fit for `jit` and `scan`. Made by `make`.

    Attributes:
      layers: name, geometry, block side, policy and images per stream of each Skip-Convolution.
      frame: `(H, W)` that motions are measured on.
    """

    layers: tuple[tuple[str, Conv, int, Any, int], ...]
    frame: tuple[int, ...]

    @classmethod
    def make(cls, net: SkipNet, variables: Any, x: Any, *args: Any) -> "Warp":
        """For a network and its frames.

        Args:
          net: from `skip`.
          variables: the network's own; shapes suffice.
          x: a frame `(B, H, W, C)`; a shape suffices. Of a pytree the first array counts.
          *args: further arguments of the network.
        """
        found = net.layers(variables, x, *args)
        layers = tuple(
            (name, site.conv, rule.gate.block, rule.policy, site.calls)
            for name, (site, rule) in found.items()
            if site.conv is not None
        )
        return cls(layers, tuple(jax.tree.leaves(x)[0].shape[1:3]))

    def __call__(self, state: NetState, motion: Motion) -> NetState:
        """The state for the frame that `motion` leads to.

        Raises:
          ValueError: as `warp_layer`, naming the layer.
        """
        moved = {}
        for name, conv, block, policy, _ in self.layers:
            try:
                moved[name] = warp_layer(state[name], motion, conv, block, policy, self.frame)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return moved

    def macs(self, motion: Motion) -> jax.Array:
        """Multiply-accumulates of moving the state, per stream `(B,)`.

        Four a value where a layer's motion is fractional, none where it is whole positions.
        """
        total = jnp.zeros((), jnp.float32)
        for _, conv, _, _, calls in self.layers:
            sources = layer_sources(motion, conv, self.frame)
            channels_of = conv.in_channels, conv.out_channels
            for source, channels in zip(sources, channels_of, strict=True):
                mixed = (source != jnp.round(source)).any(axis=-1)
                total = total + 4.0 * channels * calls * mixed.sum(axis=(1, 2), dtype=jnp.float32)
        return total

    def values(self) -> int:
        """Values of state that are moved per frame and stream; times 4 bytes, the traffic."""
        return sum(
            calls
            * (
                math.prod(conv.in_spatial) * conv.in_channels
                + math.prod(conv.out_spatial) * conv.out_channels
            )
            for _, conv, _, _, calls in self.layers
        )
