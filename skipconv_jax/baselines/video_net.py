"""`VideoNet`: what one evaluation loop asks of any network on streams of frames.

    params, state = net.init(variables, x)
    outputs, state = net.apply(params, state, x)             # pure: jit it, scan it over frames
    net.spent(state)                                         # (B,) of that frame
    state = net.reset(state, streams)

`Interleaved` and `FeatureFlow` are such networks, `Skipped` makes one of a `SkipNet` (or a
`StillNet`), and `make_video_streamer` runs any of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

from skipconv_jax import macs
from skipconv_jax.program.canonical import for_this_backend
from skipconv_jax.program.walk import number_of_streams
from skipconv_jax.streaming.runner import Reading, Streamer
from skipconv_jax.transform import SkipNet, skip

Tree = Any
T = TypeVar("T")


class VideoNet(Protocol):
    """Pure functions of parameters, state and frame; B streams, each reset alone.

    The state is a pytree of fixed structure, shapes and dtypes: a scan carry that may be donated.
    """

    def init(
        self, variables: Tree, x: Any, *, key: jax.Array | None = None
    ) -> tuple[dict[str, Tree], Any]:
        """Parameters `{'model': variables, 'gates': ...}` and the state of unseen streams.

        Args:
          variables: of the network.
          x: a frame of B streams; a shape suffices.
          key: for what has random initial parameters.
        """
        ...

    def apply(self, params: dict[str, Tree], state: Any, x: Any) -> tuple[Any, Any]:
        """Outputs of one frame, leading with B, and the state for the next frame."""
        ...

    def reset(self, state: Any, streams: jax.Array | None = None) -> Any:
        """State whose next frame is a first frame for the streams flagged `(B,)`, default all."""
        ...

    def spent(self, state: Any) -> jax.Array:
        """`(B,)` float32 multiply-accumulates of the last frame; 0 before the first one."""
        ...

    def dense_macs(self, variables: Tree, x: Any) -> int:
        """D: multiply-accumulates of a frame and stream where nothing is saved; shapes suffice."""
        ...


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A skipped network as a `VideoNet`; its gates' own cost is in the table, not in `spent`.

    Attributes:
      net: from `skip` or `cc_image`.
      table: `net.table(variables, x)` for a frame of the B streams it will see.
    """

    net: SkipNet
    table: macs.Table

    def init(
        self, variables: Tree, x: Any, *, key: jax.Array | None = None
    ) -> tuple[dict[str, Tree], Any]:
        """As `SkipNet.init`.

        Raises:
          ValueError: as there; or the table was made for another number of streams.
        """
        if number_of_streams(x) != self.table.streams:
            raise ValueError(
                f"`x` (of {number_of_streams(x)} streams) must have the {self.table.streams} "
                "streams of `table`; make the table with `net.table(variables, x)`."
            )
        return self.net.init(variables, x, key=key)

    def apply(self, params: dict[str, Tree], state: Any, x: Any) -> tuple[Any, Any]:
        """As `SkipNet.apply` at inference."""
        return self.net.apply(params, state, x)

    def reset(self, state: Any, streams: jax.Array | None = None) -> Any:
        """As `SkipNet.reset`."""
        return self.net.reset(state, streams)

    def spent(self, state: Any) -> jax.Array:
        """`macs.spent_total`."""
        return macs.spent_total(self.table, state)

    def dense_macs(self, variables: Tree, x: Any) -> int:
        """The table's total."""
        return self.net.table(variables, x).macs

    def firing(self, state: Any) -> dict[str, jax.Array]:
        """`{stage: (B,)}` share of the stage's multiply-accumulates spent at the last frame."""
        return macs.stage_firing(self.table, state)


def make_video_streamer(net: VideoNet, read: Callable[[Any], Any]) -> Streamer:
    """Jitted `(params, state, frames (T, B, ...)) -> (state, Reading)`, as `make_streamer`'s.

    The state is donated; a new T compiles anew. A reading's `firing` is empty but for `Skipped`.

    Args:
      net: any `VideoNet`.
      read: makes of the outputs what should leave the device (boxes, not logits).
    """

    def frame_step(params: dict[str, Tree], state: Any, x: Any) -> tuple[Any, Reading]:
        outputs, state = net.apply(params, state, x)
        shares = net.firing(state) if isinstance(net, Skipped) else {}
        return state, Reading(read(outputs), net.spent(state), shares, None)

    def run(params: dict[str, Tree], state: Any, frames: Any) -> tuple[Any, Reading]:
        return jax.lax.scan(lambda carry, x: frame_step(params, carry, x), state, frames)

    return jax.jit(for_this_backend(run), donate_argnums=1)


def conv_macs(fn: Callable[..., Any], variables: Tree, x: Any) -> int:
    """Multiply-accumulates of `fn(variables, x)` per stream, counted as `SkipNet.table` counts.

    Args:
      fn: pure function; the arrays of `x` lead with B.
      variables: shapes suffice.
      x: array or pytree; shapes suffice.
    """
    return skip(fn).table(variables, x).macs


def check_interval(interval: int) -> None:
    """Refuses an interval between key frames below 1."""
    if interval < 1:
        raise ValueError(
            f"`interval` (={interval}) must be at least 1, a key frame each time; use e.g. 10."
        )


def tick(wait: jax.Array, interval: int) -> tuple[jax.Array, jax.Array]:
    """Which streams have a key frame now, `(B,)` bool, and how long each waits after this frame.

    Args:
      wait: `(B,)` int32, frames until the next key frame; 0 means this one.
      interval: frames from one key frame to the next.
    """
    due = wait == 0
    return due, jnp.where(due, interval - 1, wait - 1)


def restart(wait: jax.Array, streams: jax.Array | None) -> jax.Array:
    """`wait` with 0 at the streams flagged (default: all).

    Raises:
      ValueError: flags of another shape or dtype.
    """
    if streams is None:
        return jnp.zeros_like(wait)
    streams = jnp.asarray(streams)
    if streams.shape != wait.shape or streams.dtype != jnp.bool_:
        raise ValueError(
            f"`streams` (shape {streams.shape}, {streams.dtype}) must be bool of shape "
            f"{wait.shape}, one flag per stream."
        )
    return jnp.where(streams, 0, wait)


def select(flags: jax.Array, new: T, old: T) -> T:
    """Per stream the leaves of `new` where `(B,)` flags are True, of `old` elsewhere."""

    def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(flags.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    chosen: T = jax.tree.map(leaf, new, old)
    return chosen


def zeros_like_shape(tree: Any) -> Any:
    """Arrays of zeros for a tree of shapes."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
