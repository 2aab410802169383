"""Input pipelines of the pose task: clips of T consecutive frames in batches, through grain.

A batch is a dict of NumPy arrays that all begin with (B, T):

    frames   (B, T, H, W, 3)  float32, ImageNet-normalised, or uint8 RGB (`normalized=False`)
    joints   (B, T, 15, 2)    float32, x then y in crop pixels, 0-based
    visible  (B, T, 15)       bool, annotated and inside the image
    size     (B, T)           float32, max(w, h) of the person's box in crop pixels, for PCK
    scale    (B, T)           float32, crop pixels per source pixel, for PCK

and in evaluation

    valid    (B, T)           bool, False on padding
    clip     (B, T)           int32, index of the clip in the list of clips, -1 on padding
    time     (B, T)           int32, frame of the clip, 0-based
    inverse  (B, T, 2, 3)     float32, affine from crop to source pixels
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from skipconv_jax.data import augment
from skipconv_jax.data.augment import PoseAugmentation, View
from skipconv_jax.data.clips import PoseClip, all_mirrorable, lengths_of, names_of
from skipconv_jax.data.shares import Share
from skipconv_jax.extras import required

with required():
    import grain

Batch = dict[str, np.ndarray]


class CachedFrames:
    """Decoded frames of a clip, kept in memory: for small sets, which decoding would slow down."""

    def __init__(self, clip: PoseClip) -> None:
        self._frames = clip.frames(range(clip.length))
        self.nbytes = self._frames.nbytes

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        return self._frames[indices]


@dataclasses.dataclass(frozen=True)
class _Window:
    """Cuts T frames out of a clip, as seen by a `View`."""

    length: int
    height: int
    width: int
    margin: float
    normalized: bool
    cache: Mapping[str, CachedFrames]

    def __call__(self, clip: PoseClip, indices: np.ndarray, view: View) -> Batch:
        boxes = clip.boxes[indices]
        union = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
        affine = augment.crop_affine(union, self.height, self.width, view, self.margin)
        cached = self.cache.get(clip.name)
        source = clip.frames(indices) if cached is None else cached(indices)
        frames = augment.warp_frames(source, affine, self.height, self.width)
        frames = augment.change_light(frames, view)
        joints = augment.warp_joints(clip.joints[indices], affine)
        visible = clip.visible[indices]
        if view.mirrored:
            joints, visible = augment.mirror_joints(joints, visible)
        zoom = np.float32(np.sqrt(abs(np.linalg.det(affine[:, :2]))))
        return {
            "frames": augment.normalize(frames) if self.normalized else frames,
            "joints": joints.astype(np.float32),
            "visible": visible,
            "size": (clip.sizes[indices] * zoom).astype(np.float32),
            "scale": np.full(len(indices), zoom, np.float32),
            "inverse": np.tile(augment.invert_affine(affine), (len(indices), 1, 1)),
        }


def _check(clips: Sequence[PoseClip], batch: int, length: int | None, size: Sequence[int]) -> None:
    if not len(clips):
        raise ValueError("`clips` (=[]) must hold at least one clip; check split and folder.")
    if batch < 1:
        raise ValueError(f"`batch` (={batch}) must be at least 1.")
    if length is not None and length < 1:
        raise ValueError(f"`length` (={length}) must be at least 1 frame.")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"`size` (={size}) must be (height, width) of the crop in pixels.")


def _checked(process: tuple[int, int]) -> tuple[int, int]:
    index, count = process
    if not 0 <= index < count:
        raise ValueError(f"`process` (={process}) must be (index, count) with 0 <= index < count.")
    return index, count


def make_train_iterator(
    clips: Sequence[PoseClip],
    *,
    batch: int,
    length: int,
    size: tuple[int, int] = (256, 256),
    seed: int = 0,
    augmentation: PoseAugmentation | None = None,
    margin: float = 1.25,
    normalized: bool = True,
    cache: bool = False,
    threads: int = 2,
    prefetch: int = 4,
    process: tuple[int, int] = (0, 1),
) -> Any:
    """Endless batches of random clips; the n-th batch depends on the arguments and n alone.

    Every epoch goes through all clips in a new order and takes one random window of each. The
    iterator has `get_state()` (a small JSON-serialisable dict) and `set_state(state)`; a state
    restored elsewhere continues with exactly the batches that would have followed.

    Args:
      clips: clips of at least `length` frames.
      batch: clips in a batch of this process.
      length: T, frames of a window.
      size: height and width of the crop.
      seed: of order, windows and augmentation.
      augmentation: ranges; by default the paper's, without flips where clips cannot be mirrored.
      margin: factor on the person's box.
      normalized: deliver float32 (else uint8, for `augment.normalize` on the device).
      cache: decode every frame once and keep it: T x H x W x 3 bytes a clip.
      threads: threads that prepare batches.
      prefetch: batches prepared ahead.
      process: (index, count); see `data.shares.Share`.

    Raises:
      ValueError: an argument is out of range, or a clip is too short.
    """
    _check(clips, batch, length, size)
    known = zip(names_of(clips), lengths_of(clips), strict=True)
    short = [f"{name} ({frames})" for name, frames in known if frames < length]
    if short:
        raise ValueError(
            f"`length` (={length}) must not exceed the clips' frames; too short: "
            f"{', '.join(short[:5])}{' ...' if len(short) > 5 else ''}. Leave these clips out."
        )
    index, count = _checked(process)
    ranges = _ranges(clips, augmentation)
    window = _Window(length, *size, margin, normalized, _cached(clips) if cache else {})

    def sample(clip: PoseClip, rng: np.random.Generator) -> Batch:
        start = int(rng.integers(clip.length - length + 1))
        taken = window(clip, np.arange(start, start + length), ranges.draw(rng))
        taken.pop("inverse")
        return taken

    # Drawn before samples are dealt to processes: else process 1 would draw what process 0 draws.
    samples = grain.MapDataset.source(clips).seed(seed).shuffle().repeat().random_map(sample)
    batches = Share(samples, batch, (index, count)).batch(batch, drop_remainder=True)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(batches.to_iter_dataset(options))


def _ranges(clips: Sequence[PoseClip], augmentation: PoseAugmentation | None) -> PoseAugmentation:
    mirrorable = all_mirrorable(clips)
    if augmentation is None:
        return PoseAugmentation(flip=0.5 if mirrorable else 0.0)
    if augmentation.flip > 0 and not mirrorable:
        raise ValueError(
            f"`augmentation.flip` (={augmentation.flip}) must be 0 for clips whose colours tell "
            "left from right; use flip=0, or generate the set with `--limbs plain`."
        )
    return augmentation


def steps_per_epoch(clips: Sequence[PoseClip], batch: int, processes: int = 1) -> int:
    """Batches in which about every clip was seen once, at least 1."""
    return max(1, len(clips) // (batch * processes))


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Frames `start` to `stop` of clip number `clip`."""

    clip: int
    start: int
    stop: int


def _pieces(clips: Sequence[PoseClip], length: int | None) -> list[_Piece]:
    if length is None:
        return [_Piece(i, 0, frames) for i, frames in enumerate(lengths_of(clips))]
    return [
        _Piece(i, start, min(start + length, frames))
        for i, frames in enumerate(lengths_of(clips))
        for start in range(0, frames, length)
    ]


def make_eval_iterator(
    clips: Sequence[PoseClip],
    *,
    batch: int,
    length: int | None = None,
    size: tuple[int, int] = (256, 256),
    margin: float = 1.25,
    normalized: bool = True,
    threads: int = 2,
    prefetch: int = 4,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """One pass over all frames of all clips, each piece seen through one crop as it is.

    Every batch has the same shape, and every process as many batches: short pieces repeat their
    last frame, missing pieces repeat the last one, and `valid` is False on both.

    Args:
      clips: the clips.
      batch: pieces in a batch.
      length: frames of a piece: clips are cut into consecutive pieces of T frames (the paper's
        T = 8 at test), or whole clips padded to the longest one (None).
      size: height and width of the crop.
      margin: factor on the person's box.
      normalized: deliver float32 (else uint8).
      threads: threads that prepare batches.
      prefetch: batches prepared ahead.
      process: (index, count); process i takes every count-th piece.

    Raises:
      ValueError: an argument is out of range.
    """
    _check(clips, batch, length, size)
    padded = max(lengths_of(clips)) if length is None else length
    window = _Window(padded, *size, margin, normalized, {})
    index, count = _checked(process)
    pieces = _pieces(clips, length)
    missing = -len(pieces) % (batch * count)
    source = [(piece, True) for piece in pieces] + [(pieces[-1], False)] * missing
    source = source[index::count]

    def load(item: tuple[_Piece, bool]) -> Batch:
        piece, real = item
        times = np.minimum(np.arange(piece.start, piece.start + padded), piece.stop - 1)
        taken = window(clips[piece.clip], times, View())
        valid = real & (np.arange(piece.start, piece.start + padded) < piece.stop)
        number = np.where(valid, piece.clip, -1).astype(np.int32)
        return {**taken, "valid": valid, "clip": number, "time": times.astype(np.int32)}

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(source).map(load).batch(batch).to_iter_dataset(options))


def _cached(clips: Sequence[PoseClip]) -> dict[str, CachedFrames]:
    return {clip.name: CachedFrames(clip) for clip in clips}
