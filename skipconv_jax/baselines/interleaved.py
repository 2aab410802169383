"""Interleaved: the predictions of the last key frame are copied to the frames after it.

y_t = f(x_k), k = n floor(t / n), for an interval of n frames; a clip of T <= n frames costs D / T a
frame, a stream D / n. (The paper's EfficientDet-interleaved, section 4.1.)
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from skipconv_jax.baselines.video_net import (
    check_interval,
    conv_macs,
    restart,
    select,
    tick,
    zeros_like_shape,
)
from skipconv_jax.program.walk import number_of_streams


class InterleavedState(NamedTuple):
    """What is kept between frames.

    Attributes:
      outputs: of each stream's last key frame, leading with B.
      wait: `(B,)` int32, frames until the next key frame.
      cost: () float32, multiply-accumulates of a key frame.
      spent: `(B,)` float32, of the last frame.
    """

    outputs: Any
    wait: jax.Array
    cost: jax.Array
    spent: jax.Array


@dataclasses.dataclass(frozen=True)
class Interleaved:
    """A network that runs on every `interval`-th frame, a `VideoNet`.

    Every stream counts its own frames, so that B streams are B separate runs whatever is reset.
    Streams that share their key frames, which is all of them until one is reset alone, share the
    frames without any work, too: the network is then the branch not taken of a `lax.cond`.

    Attributes:
      fn: `fn(variables, x) -> outputs`, a pytree of arrays that lead with B.
      interval: frames from one key frame to the next; 1 is the network on every frame.

    Raises:
      ValueError: an interval below 1.
    """

    fn: Callable[[Any, Any], Any]
    interval: int = 10

    def __post_init__(self) -> None:
        check_interval(self.interval)

    def init(
        self, variables: Any, x: Any, *, key: jax.Array | None = None
    ) -> tuple[dict[str, Any], InterleavedState]:
        """`{'model': variables, 'gates': {}}` and a state whose first frame is a key frame.

        Args:
          variables: the network's own.
          x: a frame of B streams; a shape suffices.
          key: not used.
        """
        del key
        streams = number_of_streams(x)
        state = InterleavedState(
            zeros_like_shape(jax.eval_shape(self.fn, variables, x)),
            jnp.zeros((streams,), jnp.int32),
            jnp.float32(self.dense_macs(variables, x)),
            jnp.zeros((streams,), jnp.float32),
        )
        return {"model": variables, "gates": {}}, state

    def apply(
        self, params: dict[str, Any], state: InterleavedState, x: Any
    ) -> tuple[Any, InterleavedState]:
        """One frame: new outputs at a key frame, the kept ones elsewhere."""
        due, wait = tick(state.wait, self.interval)
        new = jax.lax.cond(due.any(), lambda: self.fn(params["model"], x), lambda: state.outputs)
        outputs = select(due, new, state.outputs)
        spent = jnp.where(due, state.cost, 0.0)
        return outputs, InterleavedState(outputs, wait, state.cost, spent)

    def reset(self, state: InterleavedState, streams: jax.Array | None = None) -> InterleavedState:
        """State whose next frame is a key frame for the streams flagged `(B,)` (default: all).

        Raises:
          ValueError: flags of another shape or dtype.
        """
        return state._replace(wait=restart(state.wait, streams))

    def spent(self, state: InterleavedState) -> jax.Array:
        """`(B,)` float32 multiply-accumulates of the last frame: D or 0."""
        return state.spent

    def dense_macs(self, variables: Any, x: Any) -> int:
        """D, per frame and stream; shapes suffice."""
        return conv_macs(self.fn, variables, x)
