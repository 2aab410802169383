"""Input pipelines of video classification: a few frames spread over each video, whole frames.

A batch is a dict of NumPy arrays that begin with (B, T):

    frames   (B, T, H, W, 3)  uint8 RGB
    label    (B, T)           int32, index of the video's action, the same for its T frames

and in evaluation `valid` (B, T) bool, False on padding.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from skipconv_jax.data.clips import PoseClip
from skipconv_jax.data.pipeline import Batch, CachedFrames
from skipconv_jax.data.shares import Share
from skipconv_jax.extras import required

with required():
    import grain

_EPOCHS = 10**9


def segment_indices(
    length: int, segments: int, rng: np.random.Generator | None = None
) -> np.ndarray:
    """One frame of each of T equal segments: its middle, or a random one (TSN's sampling).

    Args:
      length: frames of the video; shorter than T, frames repeat.
      segments: T.
      rng: draws the frame in training.

    Returns:
      `(T,)` int64, not decreasing.

    Raises:
      ValueError: no frames or no segments.
    """
    if length < 1 or segments < 1:
        raise ValueError(f"`length` (={length}) and `segments` (={segments}) must be at least 1.")
    place = np.full(segments, 0.5) if rng is None else rng.uniform(size=segments)
    at = (np.arange(segments) + place) * length / segments
    return np.minimum(at.astype(np.int64), length - 1)


def resize_and_crop(
    frames: np.ndarray,
    size: Sequence[int],
    short_side: int,
    place: Sequence[float] = (0.5, 0.5),
    mirrored: bool = False,
) -> np.ndarray:
    """Shorter side to `short_side`, then a crop: `(T, H, W, 3)` -> `(T, height, width, 3)` uint8.

    Args:
      frames: uint8, RGB.
      size: height and width of the crop, at most `short_side`.
      short_side: pixels, 256 for crops of 224.
      place: of the crop in [0, 1], down and right; the centre by default.
      mirrored: exchange left and right.

    Raises:
      ValueError: a crop larger than the frames.
    """
    if max(size) > short_side:
        raise ValueError(f"`size` (={size}) must not exceed `short_side` (={short_side}).")
    height, width = frames.shape[1:3]
    zoom = short_side / min(height, width)
    scaled = max(round(height * zoom), short_side), max(round(width * zoom), short_side)
    top, left = (round((n - c) * p) for n, c, p in zip(scaled, size, place, strict=True))
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    out = np.empty((len(frames), *size, 3), np.uint8)
    for source, target in zip(frames, out, strict=True):
        resized = cv2.resize(source, scaled[::-1], interpolation=method)
        target[:] = resized[top : top + size[0], left : left + size[1]]
    return np.ascontiguousarray(out[:, :, ::-1]) if mirrored else out


def _labels(clips: Sequence[PoseClip], actions: Sequence[str]) -> dict[str, int]:
    unknown = sorted({clip.action for clip in clips} - set(actions))
    if not clips or unknown:
        raise ValueError(
            f"`clips` ({len(clips)} of them) must show actions of {list(actions)}; unknown: "
            f"{unknown}."
        )
    return {action: index for index, action in enumerate(actions)}


def make_train_iterator(
    clips: Sequence[PoseClip],
    actions: Sequence[str],
    *,
    batch: int,
    segments: int,
    size: tuple[int, int] = (224, 224),
    short_side: int = 256,
    seed: int = 0,
    cache: bool = False,
    threads: int = 2,
    prefetch: int = 4,
    process: tuple[int, int] = (0, 1),
) -> Any:
    """Endless batches of T random segments, one random crop and flip per video.

    Deterministic and resumable (`get_state`, `set_state`) as the pose pipeline is.

    Args:
      clips: the videos.
      actions: names of the labels, in order.
      batch: videos in a batch.
      segments: T.
      size: height and width of the crop.
      short_side: that frames are resized to before.
      seed: of order, segments, crops and flips.
      cache: keep decoded frames in memory.
      threads: that prepare batches.
      prefetch: batches prepared ahead.
      process: (index, count); see `data.shares.Share`.

    Raises:
      ValueError: no clips, or a clip of an action that is not listed.
    """
    labels = _labels(clips, actions)
    cached = {clip.name: CachedFrames(clip) for clip in clips} if cache else {}

    def sample(clip: PoseClip, rng: np.random.Generator) -> Batch:
        indices = segment_indices(clip.length, segments, rng)
        kept = cached.get(clip.name)
        frames = clip.frames(indices) if kept is None else kept(indices)
        down, right, flip = rng.uniform(size=3)
        frames = resize_and_crop(frames, size, short_side, (down, right), bool(flip < 0.5))
        return {"frames": frames, "label": np.full(segments, labels[clip.action], np.int32)}

    # Endless for all purposes; a true end at sys.maxsize overflows in batches of one.
    samples = grain.MapDataset.source(clips).seed(seed).shuffle().repeat(_EPOCHS)
    samples = samples.random_map(sample)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    shared = Share(samples, batch, process)
    return iter(shared.batch(batch, drop_remainder=True).to_iter_dataset(options))


def make_eval_iterator(
    clips: Sequence[PoseClip],
    actions: Sequence[str],
    *,
    batch: int,
    segments: int,
    size: tuple[int, int] = (224, 224),
    short_side: int = 256,
) -> Iterator[Batch]:
    """One pass over the videos: middle of every segment, centre crop, last batch padded.

    Args:
      clips: as for training, like the rest.
      actions: likewise.
      batch: likewise.
      segments: 25 or 6 in the paper.
      size: likewise.
      short_side: likewise.

    Raises:
      ValueError: as in training.
    """
    labels = _labels(clips, actions)
    for start in range(0, len(clips), batch):
        numbers = np.arange(start, start + batch)
        taken = [clips[min(int(n), len(clips) - 1)] for n in numbers]
        frames = [
            resize_and_crop(clip.frames(segment_indices(clip.length, segments)), size, short_side)
            for clip in taken
        ]
        label = np.array([labels[clip.action] for clip in taken], np.int32)
        shape = (batch, segments)
        yield {
            "frames": np.stack(frames),
            "label": np.broadcast_to(label[:, None], shape).copy(),
            "valid": np.broadcast_to((numbers < len(clips))[:, None], shape).copy(),
        }
