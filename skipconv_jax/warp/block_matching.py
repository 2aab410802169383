"""Dense flow in JAX, fit for `jit` and `scan`: block matching, refined below a position."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.warp.motion import Flow, Spatial, resample

Pair = tuple[jax.Array, jax.Array]
_RIDGE = 0.1  # where gradients are weaker, noise would decide
_LARGEST_STEP = 1.0  # of a refinement, in positions: beyond it the linear model is worth nothing


@dataclasses.dataclass(frozen=True)
class BlockMatching:
    r"""Backward flow by exhaustive search, then a few steps of Lucas and Kanade (1981).

    On gray frames averaged over `stride` x `stride` pixels, divided by their deviation,

        d(p) = argmin_{|d|_inf <= radius} mean_{q in window(p)} |k(q + d) - x(q)| + stay |d|_2
        d <- d - (sum g g^T + I / 10)^{-1} sum g (k(. + d) - x),   g = grad k(. + d)

    where k is the earlier frame. A search finds fast small objects, which a pyramid loses.

    Attributes:
      stride: side of the squares that are averaged, pixels.
      radius: of the search in positions: motions up to `radius * stride` pixels are found.
      window: side of the matched windows in positions, odd.
      stay: what a position of displacement must gain: road without texture stays where it is.
      steps: refinements.

    Raises:
      ValueError: an attribute below its bound, or an even window.
    """

    stride: int = 4
    radius: int = 8
    window: int = 5
    stay: float = 0.02
    steps: int = 2

    def __post_init__(self) -> None:
        for name, bound in {"stride": 1, "radius": 0, "window": 1, "stay": 0, "steps": 0}.items():
            value = getattr(self, name)
            if value < bound:
                raise ValueError(f"`{name}` (={value}) must be at least {bound}.")
        if self.window % 2 == 0:
            raise ValueError(f"`window` (={self.window}) must be odd; use {self.window + 1}.")

    def __call__(self, previous: jax.Array, current: jax.Array) -> Flow:
        """Flow of every pixel, that of its square.

        Args:
          previous: `(B, H, W, C)`, any scale.
          current: likewise.

        Raises:
          ValueError: shapes that differ.
        """
        field = self.field(previous, current)
        for axis in (1, 2):
            field = jnp.repeat(field, self.stride, axis=axis)
        return Flow(field[:, : current.shape[1], : current.shape[2]])

    def field(self, previous: jax.Array, current: jax.Array) -> jax.Array:
        """Flow of every square, `(B, ceil(H / stride), ceil(W / stride), 2)` float32.

        (y, x) in pixels of the frame, from now to then. Arguments and errors as for a call.
        """
        if previous.shape != current.shape or previous.ndim != 4:
            raise ValueError(
                f"`previous` (shape {previous.shape}) and `current` (shape {current.shape}) must "
                "be frames of one shape (B, H, W, C); reset the stream where the size changes."
            )
        now = self._gray(current)
        # One scale for both: a deviation of the current frame.
        scale = 1 / jnp.maximum(jnp.std(now, axis=(1, 2), keepdims=True), 1e-6)
        now, then = now * scale, self._gray(previous) * scale
        shift = self._search(then, now)
        slopes = jnp.stack([then, *_gradients(then)], axis=-1)
        for _ in range(self.steps):
            shift = self._refined(slopes, now, shift)
        return shift * float(self.stride)

    def macs(self, height: int, width: int, channels: int = 3) -> int:
        """Additions and multiplications of a pair of frames, each counted as one."""
        rows, columns = (-(-n // self.stride) for n in (height, width))
        candidates = (2 * self.radius + 1) ** 2
        search = candidates * (2 * self.window + 3)  # difference, window sums, penalty, minimum
        # 3 maps sampled, residual, 5 products and their window sums, a 2x2 system.
        refine = self.steps * (12 + 1 + 5 + 5 * 2 * self.window + 12)
        gray = 2 * height * width * channels
        return gray + rows * columns * (search + refine + 2)

    def _gray(self, frame: jax.Array) -> jax.Array:
        """Means of the squares, `(B, h, w)`; ragged ones at the edges repeat their last pixels."""
        gray = frame.astype(jnp.float32).mean(axis=-1)
        streams, *spatial = gray.shape
        pads = [(0, -n % self.stride) for n in spatial]
        gray = jnp.pad(gray, ((0, 0), *pads), mode="edge")
        rows, columns = (n // self.stride for n in gray.shape[1:])
        squares = gray.reshape(streams, rows, self.stride, columns, self.stride)
        return squares.mean(axis=(2, 4))

    def _search(self, then: jax.Array, now: jax.Array) -> jax.Array:
        """Whole displacements `(B, h, w, 2)`, the shortest first where several are as good."""
        around = np.arange(-self.radius, self.radius + 1)
        grid = np.stack(np.meshgrid(around, around, indexing="ij"), axis=-1).reshape(-1, 2)
        lengths = np.hypot(grid[:, 0], grid[:, 1])
        order = np.argsort(lengths, kind="stable")
        pads = ((0, 0), (self.radius, self.radius), (self.radius, self.radius))
        padded = jnp.pad(then, pads, mode="edge")
        area = float(self.window**2)

        def one(best: Pair, candidate: Pair) -> tuple[Pair, None]:
            shift, penalty = candidate
            start = (0, shift[0] + self.radius, shift[1] + self.radius)
            moved = jax.lax.dynamic_slice(padded, start, now.shape)
            error = _box_sum(jnp.abs(moved - now), self.window) / area + penalty
            better = error < best[0]
            new = jnp.broadcast_to(shift.astype(jnp.float32), best[1].shape)
            chosen = jnp.where(better[..., None], new, best[1])
            return (jnp.where(better, error, best[0]), chosen), None

        first = (jnp.full_like(now, jnp.inf), jnp.zeros((*now.shape, 2), jnp.float32))
        candidates = (
            jnp.asarray(grid[order], jnp.int32),
            jnp.asarray(self.stay * lengths[order], jnp.float32),
        )
        (_, found), _ = jax.lax.scan(one, first, candidates)
        return found

    def _refined(self, slopes: jax.Array, now: jax.Array, shift: jax.Array) -> jax.Array:
        source = displaced(now.shape[1:], shift)
        moved, gy, gx = jnp.moveaxis(resample(slopes, source), -1, 0)
        error = moved - now
        yy, xx, yx, ye, xe = (
            _box_sum(a, self.window) for a in (gy * gy, gx * gx, gy * gx, gy * error, gx * error)
        )
        yy, xx = yy + _RIDGE, xx + _RIDGE
        determinant = yy * xx - yx * yx
        step = jnp.stack([xx * ye - yx * xe, yy * xe - yx * ye], axis=-1) / determinant[..., None]
        return shift - jnp.clip(step, -_LARGEST_STEP, _LARGEST_STEP)


def displaced(spatial: Spatial, shift: jax.Array) -> jax.Array:
    """Places p + shift(p) `(B, h, w, 2)` of a map of `spatial` positions, kept on the map."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in spatial), indexing="ij"), axis=-1)
    last = jnp.asarray(spatial, jnp.float32)[None, None, None] - 1
    return jnp.clip(jnp.asarray(grid[None], jnp.float32) + shift, 0.0, last)


def _gradients(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Central differences of `(B, h, w)` down and to the right, one-sided at the edges."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    return down, (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2


def _box_sum(x: jax.Array, window: int) -> jax.Array:
    """Sums of `(B, h, w)` over windows, edges repeated."""
    half = window // 2
    for axis in (1, 2):
        pads = [(0, 0)] * 3
        pads[axis] = (half, half)
        padded, n = jnp.pad(x, pads, mode="edge"), x.shape[axis]
        parts = [jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i in range(window)]
        x = sum(parts[1:], parts[0])
    return x
