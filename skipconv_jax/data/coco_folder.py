"""Folders of frames with a COCO-style JSON: for users with their own data.

The JSON has `images` (`id`, `file_name` relative to the folder, `height`, `width`, optionally
`video_id` or `video` and `frame_id`), `categories` and `annotations` (`image_id`, `category_id`,
`bbox` as x, y, width, height, optionally `track_id`, `iscrowd`, `keypoints`). Frames of one video
are those of one `video_id`, else those in one folder, ordered by `frame_id`, else by their names.

For pose, a category must name its `keypoints` and each image hold at most one person; the names of
`data.skeleton.JOINTS` are looked for, and joints that the data lacks are not visible.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

import msgspec
import numpy as np

from skipconv_jax import json_files
from skipconv_jax.data import images as image_files
from skipconv_jax.data.clips import PoseClip
from skipconv_jax.data.labelled_videos import BoxTrack, VideoWindow, make_track
from skipconv_jax.data.skeleton import JOINTS
from skipconv_jax.json_files import Finite, Int32, JsonError, Positive

# What file systems take.
_LONGEST_PATH, _LONGEST_NAME = 1024, 255

# Category to the columns of its keypoints that are our joints (-1: missing), and their number.
Columns = dict[int, tuple[list[int], int]]


class ImageEntry(msgspec.Struct, frozen=True):
    """An entry of `images`."""

    id: int
    file_name: str
    # Exporters that go through tables of numbers write 480.0.
    height: Positive | None = None
    width: Positive | None = None
    video_id: int | str | None = None
    video: int | str | None = None
    frame_id: Finite | None = None


class AnnotationEntry(msgspec.Struct, frozen=True):
    """An entry of `annotations`; which of `bbox` and `keypoints` must be there, the reader says."""

    image_id: int
    category_id: int
    id: Any = None
    bbox: Any = None
    keypoints: Any = None
    iscrowd: bool | Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None
    track_id: Int32 | None = None


class CategoryEntry(msgspec.Struct, frozen=True):
    """An entry of `categories`."""

    id: int
    name: str
    keypoints: list[Any] | None = None


class Pictures(msgspec.Struct, frozen=True):
    """What a stream needs of a file: its images."""

    images: list[ImageEntry]
    annotations: list[AnnotationEntry] = []
    categories: list[CategoryEntry] = []


class Labels(msgspec.Struct, frozen=True):
    """What training and evaluation need of a file."""

    images: list[ImageEntry]
    annotations: list[AnnotationEntry]
    categories: list[CategoryEntry]


@dataclasses.dataclass(frozen=True)
class _Image:
    id: int
    path: Path
    video: str
    order: tuple[Any, ...]
    height: int  # as it is shown
    width: int
    # Of the file, where its annotations are positions in the pixels as they are stored.
    stored: image_files.Header | None = None

    def shown(self, points: np.ndarray, edge: float) -> np.ndarray:
        """Annotated positions `(..., 2)` in the picture as it is shown."""
        if self.stored is None:
            return points
        return image_files.orient_points(points, self.stored, edge)


@dataclasses.dataclass(frozen=True)
class CocoFolder:
    """The parsed JSON: images by video in order, annotations by image, categories.

    Raises:
      ValueError: a file is missing, or the JSON is not of that kind; says where.
    """

    videos: dict[str, list[_Image]]
    annotations: dict[int, list[AnnotationEntry]]
    categories: list[CategoryEntry]

    @classmethod
    def read(
        cls, folder: Path | str, file: Path | str, kind: type[Labels] | type[Pictures] = Labels
    ) -> "CocoFolder":
        """Reads `file`, whose `file_name`s are relative to `folder`.

        Args:
          folder: where the images lie.
          file: the JSON.
          kind: `Pictures` where annotations and categories may be missing.
        """
        folder, file = Path(folder), Path(file)
        try:
            content = json_files.read(file, kind)
        except JsonError as error:
            raise ValueError(_explained(file, error)) from error
        images = [_image(folder, file, entry) for entry in content.images]
        annotations: dict[int, list[AnnotationEntry]] = {image.id: [] for image in images}
        if len(annotations) < len(images):
            raise ValueError(f"`file` (={str(file)!r}) must give every image an `id` of its own.")
        for entry in content.annotations:
            if entry.image_id not in annotations:
                raise ValueError(
                    f"{file}: annotation {entry.id} names image {entry.image_id}, which is not in "
                    "`images`."
                )
            annotations[entry.image_id].append(entry)
        videos: dict[str, list[_Image]] = {}
        for image in sorted(images, key=lambda i: (i.video, i.order)):
            videos.setdefault(image.video, []).append(image)
        if not videos:
            raise ValueError(f"`file` (={str(file)!r}) must list at least one image.")
        return cls(videos, annotations, sorted(content.categories, key=lambda c: c.id))


def _explained(file: Path, error: JsonError) -> str:
    """What the file must hold, in its own terms, and what is there instead."""
    missing = re.search(r"missing required field `(\w+)`", error.reason)
    found = re.fullmatch(r"\$\.(\w+)(?:\[(\d+)\](?:\.(\w+))?)?.*", error.place)
    field = missing[1] if missing else None
    if found and found[2] is not None:
        field = found[3] or field
        needed = f"have `{field}`" if field else "be an object"
        return f"{file}: an entry of `{found[1]}` must {needed}: {error}"
    if field or found or (error.place == "$" and error.reason.startswith("expected")):
        name = field or (found[1] if found else "images")
        return f"`file` (={str(file)!r}) must have `{name}`, a list: {error}"
    return f"`file` (={str(file)!r}) must be a COCO-style JSON: {error}"


def _natural(name: str) -> tuple[Any, ...]:
    """Sorts frame 2 before frame 10."""
    parts = re.split(r"(\d+)", name)
    return tuple((1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts)


def _inside(folder: Path, file: Path, entry: ImageEntry) -> Path:
    """The path of an image, which a file may name in its own folder only."""
    name = entry.file_name
    parts = PurePosixPath(name).parts + PureWindowsPath(name).parts
    # On POSIX a drive is a name like any other.
    absolute = PurePosixPath(name).is_absolute() or Path(name).drive
    shown = repr(name if len(name) <= 80 else name[:77] + "...")
    if absolute or ".." in parts or not name or "\0" in name:
        raise ValueError(
            f"{file}: image {entry.id} has `file_name` (={shown}); it must be a path inside of "
            f"{folder}, neither absolute nor with '..'."
        )
    if len(name.encode()) > _LONGEST_PATH or max(len(p.encode()) for p in parts) > _LONGEST_NAME:
        raise ValueError(
            f"{file}: image {entry.id} has `file_name` (={shown}, {len(name)} letters); it must be "
            f"a path of at most {_LONGEST_PATH} bytes, names of at most {_LONGEST_NAME}."
        )
    return folder / name


def _image(folder: Path, file: Path, entry: ImageEntry) -> _Image:
    path = _inside(folder, file, entry)
    if not path.is_file():
        raise ValueError(f"{file}: image {entry.id} names {path}, which does not exist.")
    head = image_files.peek(path)
    (height, width), stored = head.shown, None
    given = (entry.height or height, entry.width or width)
    if given != head.shown:
        # Positions in the pixels as they are stored: the exporter looked at no orientation.
        stored = head
        if given != (head.height, head.width):
            raise ValueError(
                f"{file}: image {entry.id} has `height`, `width` (=({given[0]:g}, "
                f"{given[1]:g})); {path} has "
                f"{head.shown}. The annotations would not fit it."
            )
    video = entry.video_id if entry.video_id is not None else entry.video
    video = str(PurePosixPath(entry.file_name).parent) if video is None else video
    number = entry.frame_id
    order = (0, number) if number is not None else (1, _natural(entry.file_name))
    return _Image(entry.id, path, str(video), order, height, width, stored)


class CocoVideos:
    """Videos with boxes, as a source for the detection pipeline.

    Every listed image is annotated; `iscrowd` boxes become regions to ignore of their video.

    Args:
      folder: where the images lie.
      file: the JSON.

    Raises:
      ValueError: as `CocoFolder`, or a box is not four numbers.
    """

    def __init__(self, folder: Path | str, file: Path | str) -> None:
        parsed = CocoFolder.read(folder, file)
        self.classes = tuple(c.name for c in parsed.categories)
        self._index = {c.id: i for i, c in enumerate(parsed.categories)}
        self._videos = list(parsed.videos.items())
        self._tracks = [self._track(images, parsed) for _, images in self._videos]
        self._ignored = [self._regions(images, parsed) for _, images in self._videos]

    def _track(self, images: list[_Image], parsed: CocoFolder) -> BoxTrack:
        frames = []
        for image in images:
            entries = [a for a in parsed.annotations[image.id] if not a.iscrowd]
            boxes = np.array([_edges(a, image) for a in entries], np.float32).reshape(-1, 4)
            labels = np.array([self._label(a) for a in entries], np.int32)
            ids = [-1 if a.track_id is None else a.track_id for a in entries]
            frames.append((boxes, labels, np.array(ids, np.int32)))
        return make_track(frames)

    def _regions(self, images: list[_Image], parsed: CocoFolder) -> np.ndarray:
        found = [
            _edges(a, image) for image in images for a in parsed.annotations[image.id] if a.iscrowd
        ]
        return np.unique(np.array(found, np.float32).reshape(-1, 4), axis=0)

    def _label(self, annotation: AnnotationEntry) -> int:
        category = annotation.category_id
        if category not in self._index:
            raise ValueError(
                f"Annotation {annotation.id} has `category_id` (={category}), which is not in "
                "`categories`."
            )
        return self._index[category]

    @functools.cached_property
    def names(self) -> list[str]:
        """Of the videos."""
        return [name for name, _ in self._videos]

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Frames of each video."""
        return [len(images) for _, images in self._videos]

    def read(self, video: int, times: Sequence[int]) -> VideoWindow:
        """Frames of one video."""
        images = self._videos[video][1]
        encoded = [image_files.read(images[t].path) for t in times]
        return VideoWindow(encoded, self._tracks[video].take(times), self._ignored[video])


def _edges(annotation: AnnotationEntry, image: _Image) -> list[float]:
    """x1, y1, x2, y2 in the picture as it is shown; from the keypoints where there is no box."""
    box: Any = annotation.bbox
    if box is None and annotation.keypoints:
        box = _box_of_points(annotation)
    if not _numbers(box, 4) or min(box[2:]) <= 0:
        raise ValueError(
            f"Annotation {annotation.id} has `bbox` (={_short(box)}); it must be [x, y, width, "
            "height], finite, with positive sides."
        )
    x, y, width, height = (float(v) for v in box)
    corners = image.shown(np.array([[x, y], [x + width, y + height]]), 0)
    return [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()]


def _box_of_points(annotation: AnnotationEntry) -> list[float] | None:
    """The smallest box of whole pixels around the visible keypoints, None where none is visible."""
    points = annotation.keypoints
    if not _numbers(points, len(points)) or len(points) % 3:
        raise ValueError(
            f"Annotation {annotation.id} has `keypoints` (={_short(points)}) and no `bbox`; they "
            "must be x, y and visibility of each keypoint, finite."
        )
    seen = np.array(points, float).reshape(-1, 3)
    seen = seen[seen[:, 2] > 0, :2]
    if not len(seen):
        return None
    # A keypoint names a pixel, a box edges: the last pixel is inside of it.
    low, high = seen.min(axis=0), seen.max(axis=0) + 1
    return [*low.tolist(), *(high - low).tolist()]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _numbers(values: Any, count: int) -> bool:
    """Whether it is a list of so many finite numbers."""
    if not isinstance(values, list) or len(values) != count:
        return False
    # Pixels: what is no float32 is no position either, and no integer of a thousand digits is.
    return all(
        isinstance(v, int | float) and not isinstance(v, bool) and -1e9 <= v <= 1e9 for v in values
    )


def read_pose_clips(folder: Path | str, file: Path | str) -> list[PoseClip]:
    """Clips with one person in every frame, from COCO keypoints.

    Frames without a person have no visible joint and the box of the nearest frame with one.

    Args:
      folder: where the images lie.
      file: the JSON.

    Raises:
      ValueError: as `CocoFolder`; no category has keypoints named as `JOINTS`; an image holds two
        persons; a video holds none, or images of several sizes.
    """
    parsed = CocoFolder.read(folder, file)
    columns = _columns(parsed)
    return [_clip(name, images, parsed, columns) for name, images in parsed.videos.items()]


def _columns(parsed: CocoFolder) -> Columns:
    """Per category: where each of our joints stands in its keypoints, and how many it has."""
    columns = {}
    for category in parsed.categories:
        names = [str(n).lower().replace(" ", "_") for n in category.keypoints or []]
        found = [names.index(joint) if joint in names else -1 for joint in JOINTS]
        if max(found) >= 0:
            columns[category.id] = found, len(names)
    if not columns:
        raise ValueError(
            f"`categories` must name `keypoints` among {JOINTS}; found "
            f"{_short([c.keypoints for c in parsed.categories])}."
        )
    return columns


def _points(
    annotation: AnnotationEntry, image: _Image, columns: Columns
) -> tuple[np.ndarray, np.ndarray]:
    """Our joints `(15, 2)` and which of them are annotated."""
    found, count = columns[annotation.category_id]
    if not _numbers(annotation.keypoints, 3 * count):
        raise ValueError(
            f"Annotation {annotation.id} must have `keypoints` of {3 * count} numbers: x, y and "
            f"visibility of each of the {count} keypoints its category names."
        )
    order = np.array(found)
    points = np.array(annotation.keypoints, np.float32).reshape(-1, 3)[order]
    return image.shown(points[:, :2], 1), (points[:, 2] > 0) & (order >= 0)


def _clip(name: str, images: list[_Image], parsed: CocoFolder, columns: Columns) -> PoseClip:
    shapes = {(image.height, image.width) for image in images}
    if len(shapes) != 1:
        raise ValueError(f"Video {name} has images of sizes {sorted(shapes)}; a clip has one size.")
    joints = np.zeros((len(images), len(JOINTS), 2), np.float32)
    visible = np.zeros((len(images), len(JOINTS)), bool)
    boxes = np.full((len(images), 4), np.nan, np.float32)
    for t, image in enumerate(images):
        persons = [
            a
            for a in parsed.annotations[image.id]
            if a.category_id in columns and a.keypoints and not a.iscrowd
        ]
        if len(persons) > 1:
            raise ValueError(f"{image.path} has {len(persons)} persons; a clip shows one.")
        if persons:
            joints[t], visible[t] = _points(persons[0], image, columns)
            # COCO's box has edges; ours names its outermost pixels.
            boxes[t] = np.array(_edges(persons[0], image)) - [0, 0, 1, 1]
    known = np.flatnonzero(~np.isnan(boxes[:, 0]))
    if not len(known):
        raise ValueError(f"Video {name} shows no person with keypoints.")
    nearest = np.abs(np.arange(len(images))[:, None] - known).argmin(axis=1)
    height, width = shapes.pop()
    inside = (joints >= 0) & (joints <= np.array([width - 1, height - 1], np.float32))
    return PoseClip(
        name=name,
        joints=joints,
        visible=visible & inside.all(axis=-1),
        boxes=boxes[known[nearest]],
        height=height,
        width=width,
        encoded=lambda t: image_files.read(images[t].path),
    )
