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
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from skipconv_jax.data.clips import PoseClip
from skipconv_jax.data.labelled_videos import BoxTrack, VideoWindow, make_track
from skipconv_jax.data.skeleton import JOINTS

# Category to the columns of its keypoints that are our joints (-1: missing), and their number.
Columns = dict[int, tuple[list[int], int]]


@dataclasses.dataclass(frozen=True)
class _Image:
    id: int
    path: Path
    video: str
    order: tuple[Any, ...]
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class CocoFolder:
    """The parsed JSON: images by video in order, annotations by image, categories.

    Raises:
      ValueError: a file is missing, or the JSON is not of that kind; says where.
    """

    videos: dict[str, list[_Image]]
    annotations: dict[int, list[dict[str, Any]]]
    categories: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path | str, file: Path | str) -> "CocoFolder":
        """Reads `file`, whose `file_name`s are relative to `folder`."""
        folder, file = Path(folder), Path(file)
        try:
            content = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`file` (={str(file)!r}) must be a COCO-style JSON: {error}."
            ) from error
        listed = {name: _entries(file, content, name, keys) for name, keys in _KEYS.items()}
        images = [_image(folder, file, entry) for entry in listed["images"]]
        annotations: dict[int, list[dict[str, Any]]] = {image.id: [] for image in images}
        if len(annotations) < len(images):
            raise ValueError(f"`file` (={str(file)!r}) must give every image an `id` of its own.")
        for entry in listed["annotations"]:
            if entry["image_id"] not in annotations:
                raise ValueError(
                    f"{file}: annotation {entry.get('id')} names image "
                    f"{entry['image_id']}, which is not in `images`."
                )
            annotations[entry["image_id"]].append(entry)
        videos: dict[str, list[_Image]] = {}
        for image in sorted(images, key=lambda i: (i.video, i.order)):
            videos.setdefault(image.video, []).append(image)
        if not videos:
            raise ValueError(f"`file` (={str(file)!r}) must list at least one image.")
        return cls(videos, annotations, sorted(listed["categories"], key=lambda c: c["id"]))


_KEYS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}


def _entries(file: Path, content: Any, name: str, keys: dict[str, type]) -> list[dict[str, Any]]:
    """One of the JSON's lists, every entry of it with what must be there."""
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"`file` (={str(file)!r}) must have `{name}`, a list.")
    for entry in entries:
        for key, kind in keys.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                raise ValueError(
                    f"{file}: an entry of `{name}` must have `{key}` ({kind.__name__}), unlike "
                    f"{json.dumps(entry)[:200]}."
                )
    return entries


def _natural(name: str) -> tuple[Any, ...]:
    """Sorts frame 2 before frame 10."""
    parts = re.split(r"(\d+)", name)
    return tuple((1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts)


def _image(folder: Path, file: Path, entry: dict[str, Any]) -> _Image:
    name = entry["file_name"]
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{file}: image {entry['id']} names {path}, which does not exist.")
    height, width = entry.get("height"), entry.get("width")
    if height is None or width is None:
        picture = cv2.imread(str(path))
        if picture is None:
            raise ValueError(f"{path} cannot be decoded.")
        height, width = picture.shape[:2]
    video = entry.get("video_id", entry.get("video", str(Path(name).parent)))
    number = entry.get("frame_id")
    if not isinstance(number, int | float | None):
        raise ValueError(
            f"{file}: image {entry['id']} has `frame_id` (={number!r}); it must count."
        )
    order = (0, number) if number is not None else (1, _natural(name))
    return _Image(entry["id"], path, str(video), order, int(height), int(width))


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
        self.classes = tuple(str(c["name"]) for c in parsed.categories)
        self._index = {c["id"]: i for i, c in enumerate(parsed.categories)}
        self._videos = list(parsed.videos.items())
        self._tracks = [self._track(images, parsed) for _, images in self._videos]
        self._ignored = [self._regions(images, parsed) for _, images in self._videos]

    def _track(self, images: list[_Image], parsed: CocoFolder) -> BoxTrack:
        frames = []
        for image in images:
            entries = [a for a in parsed.annotations[image.id] if not a.get("iscrowd")]
            boxes = np.array([_edges(a) for a in entries], np.float32).reshape(-1, 4)
            labels = np.array([self._label(a) for a in entries], np.int32)
            ids = np.array([a.get("track_id", -1) for a in entries], np.int32)
            frames.append((boxes, labels, ids))
        return make_track(frames)

    def _regions(self, images: list[_Image], parsed: CocoFolder) -> np.ndarray:
        found = [
            _edges(a) for image in images for a in parsed.annotations[image.id] if a.get("iscrowd")
        ]
        return np.unique(np.array(found, np.float32).reshape(-1, 4), axis=0)

    def _label(self, annotation: dict[str, Any]) -> int:
        category = annotation["category_id"]
        if category not in self._index:
            raise ValueError(
                f"Annotation {annotation.get('id')} has `category_id` (={category}), which is not "
                "in `categories`."
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
        encoded = [images[t].path.read_bytes() for t in times]
        return VideoWindow(encoded, self._tracks[video].take(times), self._ignored[video])


def _edges(annotation: dict[str, Any]) -> list[float]:
    box: Any = annotation.get("bbox")
    if not _numbers(box, 4) or min(box[2:]) <= 0:
        raise ValueError(
            f"Annotation {annotation.get('id')} has `bbox` (={box}); it must be [x, y, width, "
            "height] with positive sides."
        )
    x, y, width, height = (float(v) for v in box)
    return [x, y, x + width, y + height]


def _numbers(values: Any, count: int) -> bool:
    """Whether it is a list of so many finite numbers."""
    if not isinstance(values, list) or len(values) != count:
        return False
    return all(isinstance(v, int | float) and math.isfinite(v) for v in values)


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
        names = [str(n).lower().replace(" ", "_") for n in category.get("keypoints") or []]
        found = [names.index(joint) if joint in names else -1 for joint in JOINTS]
        if max(found) >= 0:
            columns[category["id"]] = found, len(names)
    if not columns:
        raise ValueError(
            f"`categories` must name `keypoints` among {JOINTS}; found "
            f"{[c.get('keypoints') for c in parsed.categories]}."
        )
    return columns


def _points(annotation: dict[str, Any], columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Our joints `(15, 2)` and which of them are annotated."""
    found, count = columns[annotation["category_id"]]
    if not _numbers(annotation["keypoints"], 3 * count):
        raise ValueError(
            f"Annotation {annotation.get('id')} must have `keypoints` of {3 * count} numbers: x, y "
            f"and visibility of each of the {count} keypoints its category names."
        )
    order = np.array(found)
    points = np.array(annotation["keypoints"], np.float32).reshape(-1, 3)[order]
    return points[:, :2], (points[:, 2] > 0) & (order >= 0)


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
            if a.get("category_id") in columns and a.get("keypoints") and not a.get("iscrowd")
        ]
        if len(persons) > 1:
            raise ValueError(f"{image.path} has {len(persons)} persons; a clip shows one.")
        if persons:
            joints[t], visible[t] = _points(persons[0], columns)
            # COCO's box has edges; ours names its outermost pixels.
            boxes[t] = np.array(_edges(persons[0])) - [0, 0, 1, 1]
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
        encoded=lambda t: images[t].path.read_bytes(),
    )
