"""What one skipped convolution remembers between frames."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import export


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SkipState:
    """State of one convolution for B independent streams; a pytree of fixed structure.

    Attributes:
      reference: the policy's past input; for `Previous` x_{t-1}, `(B, *spatial, Ci)`. Where a
        network runs several images of each stream, B counts images; only `fresh` counts streams.
      output: z~_{t-1} with bias, before the non-linearity, `(B, *out_spatial, Co)`, in the
        accumulation dtype.
      fresh: `(B,)` bool, True where the next frame is a reference frame and everything is
        computed; one flag per stream.
      fired: `(B, *grid)` the last mask in {0, 1} at block resolution, float so that the gate loss
        is differentiable.
      stale: `(B, *grid)` bool, blocks the next frame must compute whatever the gate says, because a
        warp brought what was never seen; None (as `skip_conv` returns it) for none. The reference
        of a warped state is that of the frame with its padding, into which things may have moved.
    """

    reference: Any
    output: jax.Array
    fresh: jax.Array
    fired: jax.Array
    stale: jax.Array | None = None

    def reset(self, streams: jax.Array | None = None) -> "SkipState":
        """State whose next frame is a reference frame for the given streams (default: all).

        Args:
          streams: `(B,)` bool.

        Raises:
          ValueError: flags of another shape or dtype.
        """
        if streams is None:
            return dataclasses.replace(self, fresh=jnp.ones_like(self.fresh))
        streams = jnp.asarray(streams)
        if streams.shape != self.fresh.shape or streams.dtype != jnp.bool_:
            raise ValueError(
                f"`streams` (shape {streams.shape}, {streams.dtype}) must be bool of shape "
                f"{self.fresh.shape}, one flag per stream."
            )
        return dataclasses.replace(self, fresh=self.fresh | streams)


# So that `export(jit(net.apply))` can be written to a file; the name is part of such files.
export.register_pytree_node_serialization(
    SkipState,
    serialized_name="skipconv_jax.SkipState",
    serialize_auxdata=lambda _: b"",
    deserialize_auxdata=lambda _: (),
)
