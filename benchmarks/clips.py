"""Frames for the CPU benchmarks: a crop around real motion, synthetic motion, random blocks."""

from pathlib import Path

import numpy as np

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalise(frames: np.ndarray) -> np.ndarray:
    """uint8 RGB to the network's input, float32."""
    return (frames.astype(np.float32) / 255.0 - _MEAN) / _STD


def video_crop(path: Path, size: int, frames: int, skip: int = 0) -> np.ndarray:
    """`(frames, size, size, 3)` uint8: the crop and moment of a video with most motion.

    The crop is square, of the frame's height at most, and resized to `size`.
    """
    import av
    import cv2

    stack = []
    with av.open(str(path)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i >= skip:
                stack.append(frame.to_ndarray(format="rgb24"))
            if len(stack) >= max(frames, 240):
                break
    small = np.stack([cv2.resize(f, None, fx=0.25, fy=0.25).mean(2) for f in stack])
    change = np.abs(np.diff(small, axis=0)) > 12
    window = min(size // 4, small.shape[1])
    busy = np.stack([cv2.boxFilter(c.astype(np.float32), -1, (window, window)) for c in change])
    sums = np.cumsum(busy, axis=0)
    runs = sums[frames - 1 :] - np.concatenate([np.zeros_like(sums[:1]), sums[:-frames]])
    start, y, x = np.unravel_index(np.argmax(runs), runs.shape)
    side = min(size, stack[0].shape[0])
    top = int(np.clip(y * 4 - side // 2, 0, stack[0].shape[0] - side))
    left = int(np.clip(x * 4 - side // 2, 0, stack[0].shape[1] - side))
    crops = [f[top : top + side, left : left + side] for f in stack[start : start + frames]]
    return np.stack([cv2.resize(c, (size, size), interpolation=cv2.INTER_AREA) for c in crops])


def moving_square(size: int, frames: int, side: int, seed: int = 0) -> np.ndarray:
    """`(frames, size, size, 3)` uint8: a textured square that crosses a textured background."""
    rng = np.random.default_rng(seed)
    background = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
    patch = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
    clip = np.repeat(background[None], frames, axis=0)
    for t in range(frames):
        at = int((size - side) * (0.5 + 0.4 * np.sin(2 * np.pi * t / frames)))
        clip[t, at : at + side, at : at + side] = patch
    return clip


def random_blocks(size: int, frames: int, share: float, seed: int = 0) -> np.ndarray:
    """`(frames, size, size, 3)` uint8: uniformly random 32 x 32 blocks change on every frame."""
    rng = np.random.default_rng(seed)
    clip = np.repeat(rng.integers(0, 255, (1, size, size, 3), dtype=np.uint8), frames, axis=0)
    for t in range(1, frames):
        clip[t] = clip[t - 1]
        for y in range(0, size, 32):
            for x in range(0, size, 32):
                if rng.random() < share:
                    clip[t, y : y + 32, x : x + 32] = rng.integers(0, 255, (32, 32, 3))
    return clip
