"""What may follow a recomputed block while it is still in registers: y = f(scale z + shift + r)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from skipconv_jax.ops.geometry import block_upsample

# Written out, because kernels take no function with a derivative of its own.
_ACTIVATIONS: dict[str | None, Callable[[jax.Array], jax.Array]] = {
    None: lambda y: y,
    "relu": lambda y: jnp.maximum(y, jnp.zeros((), y.dtype)),
    "swish": lambda y: y * lax.logistic(y),
}
ACTIVATIONS = tuple(_ACTIVATIONS)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Epilogue:
    """y = f(scale z + shift + residual) of a fired block's convolution z (bias included).

    Attributes:
      scale: `(Co,)`; a folded batch norm's.
      shift: `(Co,)`.
      residual: `(B, *out_spatial, Co)` or None; what a residual network adds.
      activation: f, one of `ACTIVATIONS`.

    Raises:
      ValueError: an unknown activation.
    """

    scale: jax.Array
    shift: jax.Array
    residual: jax.Array | None = None
    activation: str | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"`activation` (={self.activation!r}) must be one of {ACTIVATIONS}; apply any "
                "other to the output."
            )

    def where_fired(self, z: jax.Array, base: jax.Array, mask: jax.Array, block: int) -> jax.Array:
        """y where the mask is 1, `base` where it is 0, for implementations that do not fuse it."""
        y = finish(z, self.scale, self.shift, self.residual, self.activation)
        fired = block_upsample(mask, block, z.shape[1:-1])[..., None].astype(z.dtype)
        return jnp.where(fired > 0, y, base)


def finish(
    z: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    residual: jax.Array | None,
    activation: str | None,
) -> jax.Array:
    """y of any piece of z `(..., Co)`, from the matching pieces of an epilogue's attributes."""
    y = z * _last(scale, z) + _last(shift, z)
    if residual is not None:
        y = y + residual.astype(z.dtype)
    return activate(y, activation)


def activate(y: jax.Array, activation: str | None) -> jax.Array:
    """f alone."""
    return _ACTIVATIONS[activation](y)


def _last(channels: jax.Array, like: jax.Array) -> jax.Array:
    """`(Co,)` with leading unit axes, in the dtype of `like`."""
    return channels.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))
