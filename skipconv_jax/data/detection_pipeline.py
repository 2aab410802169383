"""Input pipelines of the detection task: clips of T consecutive frames with boxes, through grain.

A batch is a dict of NumPy arrays that all begin with (B, T):

    frames     (B, T, H, W, 3)  float32, ImageNet-normalised, or uint8 RGB (`normalized=False`)
    boxes      (B, T, M, 4)     float32: x1, y1, x2, y2, edges in pixels of the frame, 0 on padding
    labels     (B, T, M)        int32, -1 on padding
    ignored    (B, T, K, 4)     float32, regions in which nothing counts, 0 on padding
    annotated  (B, T)           bool, False where a frame is not labelled: it is no negative
    scale      (B, T)           float32, pixels of the frame per source pixel

and in evaluation

    valid      (B, T)           bool, False on padding
    video      (B, T)           int32, index of the video in the source, -1 on padding
    time       (B, T)           int32, frame of the video, 0-based

A frame is resized until it fits, put into the top left corner and padded below or to the right with
the mean colour, as EfficientDet does; in evaluation `boxes / scale` are source pixels.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from skipconv_jax.data.augment import normalize
from skipconv_jax.data.clips import decode_image
from skipconv_jax.data.labelled_videos import BoxTrack, VideoSource, clip_boxes, covered
from skipconv_jax.data.placement import MEAN_COLOR, DetectionView, Placement, place
from skipconv_jax.data.shares import Share
from skipconv_jax.extras import required

with required():
    import grain

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DetectionAugmentation:
    """Ranges of the random view of a clip; the defaults are the paper's: flips alone.

    Attributes:
      flip: probability of mirroring.
      scale: smallest and largest factor on the size that fits; beyond 1 a random part is shown.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"`flip` (={self.flip}) must lie in [0, 1].")
        if not (isinstance(self.scale, tuple | list) and len(self.scale) == 2) or not (
            0 < self.scale[0] <= self.scale[1] < np.inf
        ):
            raise ValueError(f"`scale` (={self.scale}) must be two positive factors, in order.")

    def draw(self, rng: np.random.Generator) -> "DetectionView":
        """One random view. The number of draws does not depend on the settings."""
        mirror, scale, x, y = rng.uniform(size=4)
        low, high = self.scale
        return DetectionView(bool(mirror < self.flip), low + (high - low) * scale, (x, y))


@dataclasses.dataclass(frozen=True)
class Labels:
    """What becomes of the annotations.

    Attributes:
      agnostic: one class for all vehicles, as in the paper.
      drop_ignored: leave out boxes that ignored regions cover by at least half.
      hide_ignored: paint ignored regions in the mean colour.
      max_boxes: rows of `boxes`.
      max_ignored: rows of `ignored`.
    """

    agnostic: bool = True
    drop_ignored: bool = False
    hide_ignored: bool = False
    max_boxes: int = 128
    max_ignored: int = 16


@dataclasses.dataclass(frozen=True)
class _Loader:
    source: VideoSource
    size: tuple[int, int]
    labels: Labels
    normalized: bool

    def __call__(self, video: int, times: np.ndarray, view: DetectionView) -> Batch:
        window = self.source.read(video, [int(t) for t in times])
        name = self.source.names[video]
        # Padding repeats its last frame: no need to decode it again.
        decoded: dict[int, np.ndarray] = {}
        for t, data in zip(times.tolist(), window.encoded, strict=True):
            if t not in decoded:
                decoded[t] = decode_image(data, f"frame {t + 1} of {name}")
        shape = next(iter(decoded.values())).shape[:2]
        where = place((shape[0], shape[1]), self.size, view)
        frames = np.empty((len(times), *self.size, 3), np.uint8)
        for i, t in enumerate(times.tolist()):
            frames[i] = self._warp(decoded[t], where, window.ignored)
        limits = [min(self.size[0], shape[0] * where.sy + where.ty), self.size[1]]
        if not view.mirrored:
            limits[1] = min(self.size[1], shape[1] * where.sx + where.tx)
        boxes, labels = self._boxes(window.track, window.ignored, where, limits, name)
        if len(window.ignored) > self.labels.max_ignored:
            raise ValueError(
                f"`max_ignored` (={self.labels.max_ignored}) must be at least "
                f"{len(window.ignored)}, the regions to ignore of {name}; raise it."
            )
        ignored = np.zeros((len(times), self.labels.max_ignored, 4), np.float32)
        regions = where.boxes(window.ignored)
        ignored[:, : len(regions)] = clip_boxes(regions, *self.size)
        return {
            "frames": normalize(frames) if self.normalized else frames,
            "boxes": boxes,
            "labels": labels,
            "ignored": ignored,
            "annotated": window.track.annotated,
            "scale": np.full(len(times), where.sy, np.float32),
        }

    def _warp(self, image: np.ndarray, where: Placement, ignored: np.ndarray) -> np.ndarray:
        if self.labels.hide_ignored and len(ignored):
            image = image.copy()
            for x1, y1, x2, y2 in clip_boxes(ignored, *image.shape[:2]).round().astype(int):
                image[y1:y2, x1:x2] = MEAN_COLOR
        size = (self.size[1], self.size[0])
        return cv2.warpAffine(image, where.matrix(), size, borderValue=MEAN_COLOR)

    def _boxes(
        self,
        track: BoxTrack,
        regions: np.ndarray,
        where: Placement,
        limits: Sequence[float],
        name: str,
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = self.labels.max_boxes
        boxes = np.zeros((track.length, rows, 4), np.float32)
        labels = np.full((track.length, rows), -1, np.int32)
        for t in range(track.length):
            found, kinds, _ = track.frame(t)
            if self.labels.drop_ignored:
                keep = covered(found, regions) < 0.5
                found, kinds = found[keep], kinds[keep]
            found = clip_boxes(where.boxes(found), limits[0], limits[1])
            keep = (found[:, 2:] - found[:, :2] >= 1).all(axis=1)
            found, kinds = found[keep], kinds[keep]
            if len(found) > rows:
                raise ValueError(
                    f"`max_boxes` (={rows}) must be at least {len(found)}, the boxes in a frame of "
                    f"{name}; raise it."
                )
            boxes[t, : len(found)] = found
            labels[t, : len(found)] = 0 if self.labels.agnostic else kinds
        return boxes, labels


def _windows(lengths: Sequence[int], length: int) -> list[tuple[int, int]]:
    """(video, start) of the consecutive windows of T frames, without the incomplete last ones."""
    return [
        (video, start)
        for video, frames in enumerate(lengths)
        for start in range(0, frames - length + 1, length)
    ]


def _check(source: VideoSource, batch: int, length: int, process: tuple[int, int]) -> None:
    if not source.lengths:
        raise ValueError("`source` must hold at least one video; check the part and the folder.")
    if batch < 1 or length < 1:
        raise ValueError(f"`batch` (={batch}) and `length` (={length}) must be at least 1.")
    if not 0 <= process[0] < process[1]:
        raise ValueError(f"`process` (={process}) must be (index, count) with 0 <= index < count.")


def make_train_iterator(
    source: VideoSource,
    *,
    batch: int,
    length: int = 4,
    size: tuple[int, int] = (512, 512),
    seed: int = 0,
    augmentation: DetectionAugmentation = DetectionAugmentation(),
    labels: Labels = Labels(),
    normalized: bool = True,
    threads: int = 2,
    prefetch: int = 4,
    process: tuple[int, int] = (0, 1),
) -> Any:
    """Endless batches of random clips; the n-th batch depends on the arguments and n alone.

    Every epoch goes through all windows of T frames in a new order, each moved by a random offset.
    The iterator has `get_state()` and `set_state(state)`, as in `data.pipeline`.

    Args:
      source: the videos.
      batch: clips in a batch of this process.
      length: T, frames of a clip; the paper takes 4.
      size: height and width of a frame.
      seed: of order, offsets and augmentation.
      augmentation: the paper's by default.
      labels: what becomes of the annotations.
      normalized: deliver float32 (else uint8).
      threads: threads that prepare batches.
      prefetch: batches prepared ahead.
      process: (index, count); see `data.shares.Share`.

    Raises:
      ValueError: an argument is out of range, or every video is too short.
    """
    _check(source, batch, length, process)
    lengths = source.lengths
    windows = _windows(lengths, length)
    if not windows:
        raise ValueError(
            f"`length` (={length}) must not exceed the longest video ({max(lengths)})."
        )
    load = _Loader(source, size, labels, normalized)

    def sample(window: tuple[int, int], rng: np.random.Generator) -> Batch:
        video, start = window
        start = min(start + int(rng.integers(length)), lengths[video] - length)
        return load(video, np.arange(start, start + length), augmentation.draw(rng))

    samples = grain.MapDataset.source(windows).seed(seed).shuffle().repeat().random_map(sample)
    batches = Share(samples, batch, process).batch(batch, drop_remainder=True)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(batches.to_iter_dataset(options))


def steps_per_epoch(source: VideoSource, batch: int, length: int = 4, processes: int = 1) -> int:
    """Batches in which about every window was seen once, at least 1."""
    return max(1, len(_windows(source.lengths, length)) // (batch * processes))


def make_eval_iterator(
    source: VideoSource,
    *,
    batch: int,
    length: int = 4,
    size: tuple[int, int] = (512, 512),
    labels: Labels = Labels(),
    normalized: bool = True,
    threads: int = 2,
    prefetch: int = 4,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """One pass over all frames of all videos, in consecutive clips of T frames.

    Every batch has the same shape, and every process as many batches: short clips repeat their last
    frame, missing clips repeat the last one, and `valid` is False on both.

    Args:
      source: the videos.
      batch: clips in a batch.
      length: T, frames of a clip.
      size: height and width of a frame.
      labels: what becomes of the annotations.
      normalized: deliver float32 (else uint8).
      threads: threads that prepare batches.
      prefetch: batches prepared ahead.
      process: (index, count); process i takes every count-th clip.

    Raises:
      ValueError: an argument is out of range.
    """
    _check(source, batch, length, process)
    pieces = [
        (video, start, True)
        for video, frames in enumerate(source.lengths)
        for start in range(0, frames, length)
    ]
    missing = -len(pieces) % (batch * process[1])
    pieces += [(*pieces[-1][:2], False)] * missing
    load = _Loader(source, size, labels, normalized)

    def piece(item: tuple[int, int, bool]) -> Batch:
        video, start, real = item
        times = np.arange(start, start + length)
        valid = real & (times < source.lengths[video])
        times = np.minimum(times, source.lengths[video] - 1)
        number = np.where(valid, video, -1).astype(np.int32)
        taken = load(video, times, DetectionView())
        return {**taken, "valid": valid, "video": number, "time": times.astype(np.int32)}

    items = grain.MapDataset.source(pieces[process[0] :: process[1]])
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(items.map(piece).batch(batch).to_iter_dataset(options))
