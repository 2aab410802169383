"""Motion from two frames: translation by phase correlation, homography from points, dense flow.

An estimator is a function `(previous, current) -> Motion` of frames `(B, H, W, C)`; your own works
as well. `phase_correlation` is JAX and may run inside `jit`; the others are OpenCV, on the host.
"""

import functools
import math
from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from skipconv_jax.warp.motion import Flow, Homography, Motion, Translation, inside, resample

_MOST_POINTS = 300
_FEWEST_POINTS = 12


def _check(previous: npt.ArrayLike, current: npt.ArrayLike) -> None:
    shapes = np.shape(previous), np.shape(current)
    if shapes[0] != shapes[1] or len(shapes[0]) != 4:
        raise ValueError(
            f"`previous` (shape {shapes[0]}) and `current` (shape {shapes[1]}) must be frames of "
            "one shape (B, H, W, C); reset the stream where the size changes."
        )


def phase_correlation(
    previous: jax.Array, current: jax.Array, *, smallest_peak: float = 0.03
) -> Translation:
    r"""Translation from the peak of the inverse FFT of conj(X) Y / |conj(X) Y| (Kuglin 1975).

    A Hann window hides the border, a parabola through the peak's neighbours gives a fraction of a
    pixel. Zero where no common shift lowers the mean |r_t|. Jittable.

    Args:
      previous: `(B, H, W, C)`, any scale.
      current: likewise.
      smallest_peak: height below which the frames have no common translation: zero is returned.

    Raises:
      ValueError: shapes that differ.
    """
    _check(previous, current)
    size = previous.shape[1:3]
    spectra = [jnp.fft.rfft2(_windowed(frame)) for frame in (previous, current)]
    cross = jnp.conj(spectra[0]) * spectra[1]
    power = jnp.abs(cross)
    # Frequencies without content have a random phase: they get no vote.
    floor = 1e-6 * power.max(axis=(1, 2), keepdims=True) + 1e-30
    unit = jax.lax.complex(*(p / jnp.maximum(power, floor) for p in (cross.real, cross.imag)))
    surface = jnp.fft.irfft2(unit, s=size)
    peak = surface.reshape(surface.shape[0], -1).argmax(axis=1)
    row, column = peak // size[1], peak % size[1]
    vertical = _vertex(surface, row, column, 0)
    horizontal = _vertex(surface, row, column, 1)
    shift = jnp.stack([_signed(vertical, size[0]), _signed(horizontal, size[1])], axis=-1)
    found = surface.max(axis=(1, 2)) >= smallest_peak
    # A bright object may own the peak: a shift must explain more of the frame than none does.
    gray_then, gray_now = (f.astype(jnp.float32).mean(axis=-1) for f in (previous, current))
    source = Translation(shift).source(size, size)
    seen = inside(source, size)
    moved = jnp.abs(gray_now - resample(gray_then[..., None], source)[..., 0])
    left, right = (
        jnp.where(seen, r, 0.0).sum(axis=(1, 2)) for r in (moved, jnp.abs(gray_now - gray_then))
    )
    return Translation(jnp.where((found & (left < right))[:, None], shift, 0.0))


def _windowed(frame: jax.Array) -> jax.Array:
    gray = frame.astype(jnp.float32).mean(axis=-1)
    gray = gray - gray.mean(axis=(1, 2), keepdims=True)
    rows, columns = (jnp.asarray(np.hanning(n), jnp.float32) for n in gray.shape[1:])
    return gray * (rows[:, None] * columns[None, :])[None]


def _vertex(surface: jax.Array, row: jax.Array, column: jax.Array, axis: int) -> jax.Array:
    """Peak position along an axis, refined by the parabola through three values."""
    stream, size = jnp.arange(surface.shape[0]), surface.shape[1 + axis]

    def value(offset: int) -> jax.Array:
        at = [row, column]
        at[axis] = (at[axis] + offset) % size
        return surface[stream, at[0], at[1]]

    below, centre, above = value(-1), value(0), value(1)
    curvature = below - 2 * centre + above
    offset = 0.5 * (below - above) / jnp.where(curvature < 0, curvature, -1.0)
    return (row, column)[axis].astype(jnp.float32) + jnp.clip(offset, -0.5, 0.5)


def _signed(position: jax.Array, size: int) -> jax.Array:
    return jnp.where(position > size / 2, position - size, position)


def phase_correlation_macs(height: int, width: int) -> float:
    """Multiplications of three real FFTs of a frame: about N log2 N each."""
    pixels = height * width
    return 3 * pixels * math.log2(pixels)


def _gray(previous: npt.ArrayLike, current: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both frames as `(B, H, W)` uint8 on one scale."""
    frames = np.stack([np.asarray(previous), np.asarray(current)]).astype(np.float32).mean(axis=-1)
    low, high = frames.min(), frames.max()
    frames = np.round((frames - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    return frames[0], frames[1]


def tracked_homography(previous: npt.ArrayLike, current: npt.ArrayLike) -> Homography:
    """Homography from corners tracked by pyramidal Lucas-Kanade, RANSAC (OpenCV, on the host).

    Identity where fewer than 12 points agree.

    Args:
      previous: `(B, H, W, C)`, any scale.
      current: likewise.

    Raises:
      ValueError: shapes that differ.
    """
    _check(previous, current)
    matrices = [_homography(*pair) for pair in zip(*_gray(previous, current), strict=True)]
    return Homography(jnp.asarray(np.stack(matrices), jnp.float32))


def _homography(previous: np.ndarray, current: np.ndarray) -> np.ndarray:
    identity = np.eye(3, dtype=np.float32)
    points = cv2.goodFeaturesToTrack(current, _MOST_POINTS, 0.01, 5)
    if points is None or len(points) < _FEWEST_POINTS:
        return identity
    start = np.empty_like(points)
    then, found, _ = cv2.calcOpticalFlowPyrLK(current, previous, points, start)
    kept = found[:, 0] == 1
    if kept.sum() < _FEWEST_POINTS:
        return identity
    matrix, inliers = cv2.findHomography(points[kept], then[kept], cv2.RANSAC, 1.5)
    if matrix is None or int(inliers.sum()) < _FEWEST_POINTS:
        return identity
    return matrix.astype(np.float32)


def dis_flow(previous: npt.ArrayLike, current: npt.ArrayLike) -> Flow:
    """Dense backward flow, Dense Inverse Search (Kroeger et al. 2016; OpenCV, on the host).

    Args:
      previous: `(B, H, W, C)`, any scale.
      current: likewise.

    Raises:
      ValueError: shapes that differ.
    """
    _check(previous, current)
    search = _dis()
    fields = [
        search.calc(now, then, np.zeros((*now.shape, 2), np.float32))[..., ::-1]
        for then, now in zip(*_gray(previous, current), strict=True)
    ]
    return Flow(jnp.asarray(np.stack(fields), jnp.float32))


@functools.cache
def _dis() -> cv2.DISOpticalFlow:
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)


ESTIMATORS: dict[str, Callable[..., Motion]] = {
    "translation": phase_correlation,
    "homography": tracked_homography,
    "flow": dis_flow,
}
"""Estimators by the names that configurations use."""
