"""Videos with boxes, wherever their frames come from."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class BoxTrack:
    """Boxes of T frames, flat; frame t owns `counts[t]` consecutive rows.

    Attributes:
      boxes: `(N, 4)` float32: x1, y1, x2, y2 in pixels, edges, as the files give them.
      labels: `(N,)` int32, index of the class.
      ids: `(N,)` int32, the same for one object throughout a video.
      counts: `(T,)` int32.
      annotated: `(T,)` bool: False where nothing is known about a frame, not even that it is empty.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    counts: np.ndarray
    annotated: np.ndarray

    def __post_init__(self) -> None:
        rows = {len(self.boxes), len(self.labels), len(self.ids), int(self.counts.sum())}
        if len(rows) != 1 or len(self.counts) != len(self.annotated):
            raise ValueError(
                f"`boxes`, `labels`, `ids` (of {len(self.boxes)}, {len(self.labels)}, "
                f"{len(self.ids)} rows) and `counts` (sum {int(self.counts.sum())}) must agree, "
                "`annotated` must have one entry per frame."
            )

    @property
    def length(self) -> int:
        """Frames."""
        return len(self.counts)

    def take(self, times: Sequence[int] | np.ndarray) -> "BoxTrack":
        """The boxes of the given frames, in the order given."""
        ends = np.cumsum(self.counts)
        spans = [np.arange(ends[t] - self.counts[t], ends[t]) for t in times]
        rows = np.concatenate([np.empty(0, np.int64), *spans]).astype(np.int64)
        index = np.asarray(times, np.int64)
        return BoxTrack(
            self.boxes[rows],
            self.labels[rows],
            self.ids[rows],
            self.counts[index],
            self.annotated[index],
        )

    def frame(self, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, labels and ids of one frame."""
        one = self.take([t])
        return one.boxes, one.labels, one.ids


def make_track(frames: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray] | None]) -> BoxTrack:
    """A track from (boxes, labels, ids) of each frame; None where a frame is not annotated."""
    known = [frame for frame in frames if frame is not None]
    return BoxTrack(
        boxes=np.concatenate([np.empty((0, 4), np.float32), *(f[0] for f in known)]),
        labels=np.concatenate([np.empty(0, np.int32), *(f[1] for f in known)]).astype(np.int32),
        ids=np.concatenate([np.empty(0, np.int32), *(f[2] for f in known)]).astype(np.int32),
        counts=np.array([0 if f is None else len(f[0]) for f in frames], np.int32),
        annotated=np.array([f is not None for f in frames], bool),
    )


@dataclasses.dataclass(frozen=True)
class VideoWindow:
    """Some frames of a video.

    Attributes:
      encoded: PNG or JPEG bytes of each frame.
      track: their boxes.
      ignored: `(K, 4)` float32, regions of the video in which nothing counts.
    """

    encoded: list[bytes]
    track: BoxTrack
    ignored: np.ndarray


class VideoSource(Protocol):
    """Videos with random access to any frames; reading is safe across threads."""

    @property
    def names(self) -> list[str]:
        """Of the videos."""
        ...

    @property
    def lengths(self) -> list[int]:
        """Frames of each video."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a label is an index into them."""
        ...

    def read(self, video: int, times: Sequence[int]) -> VideoWindow:
        """Frames of one video, 0-based, in the order given."""
        ...


@dataclasses.dataclass(frozen=True)
class FirstVideos:
    """The first `count` videos of a source."""

    source: VideoSource
    count: int

    @property
    def names(self) -> list[str]:
        """Of the videos."""
        return self.source.names[: self.count]

    @property
    def lengths(self) -> list[int]:
        """Frames of each video."""
        return self.source.lengths[: self.count]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.source.classes

    def read(self, video: int, times: Sequence[int]) -> VideoWindow:
        """Frames of one video."""
        return self.source.read(video, times)


def clip_boxes(boxes: np.ndarray, height: float, width: float) -> np.ndarray:
    """Boxes `(..., 4)` cut at the image's edges."""
    limit = np.array([width, height, width, height], boxes.dtype)
    return np.clip(boxes, 0, limit)


def covered(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Share of each box's area inside the union of regions: `(N,)` from `(N, 4)` and `(K, 4)`.

    Exact for overlapping regions too: the plane is cut along all their edges.
    """
    if not len(boxes) or not len(regions):
        return np.zeros(len(boxes))
    xs, ys = np.unique(regions[:, [0, 2]]), np.unique(regions[:, [1, 3]])
    middle_x, middle_y = (xs[1:] + xs[:-1]) / 2, (ys[1:] + ys[:-1]) / 2
    in_x = (regions[:, None, 0] <= middle_x) & (middle_x <= regions[:, None, 2])
    in_y = (regions[:, None, 1] <= middle_y) & (middle_y <= regions[:, None, 3])
    inside = np.einsum("ky,kx->yx", in_y.astype(int), in_x.astype(int)) > 0

    def overlap(low: np.ndarray, high: np.ndarray, cuts: np.ndarray) -> np.ndarray:
        ends, starts = np.minimum(high[:, None], cuts[1:]), np.maximum(low[:, None], cuts[:-1])
        return np.maximum(ends - starts, 0)

    width, height = overlap(boxes[:, 0], boxes[:, 2], xs), overlap(boxes[:, 1], boxes[:, 3], ys)
    area = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1e-9)
    return np.einsum("ny,yx,nx->n", height, inside.astype(float), width) / area
