"""Folders of frames with a COCO-style JSON: for users with their own data.

The JSON has `images` (`id`, `file_name` relative to the folder, `height`, `width`, optionally
`video_id` or `video` and `frame_id`), `categories` and `annotations` (`image_id`, `category_id`,
`bbox` as x, y, width, height, optionally `track_id`, `iscrowd`, `keypoints`). Frames of one video
are those of one `video_id`, else those in one folder, ordered by `frame_id`, else by their names.

For pose, a category must name its `keypoints` and each image hold at most one person; the names of
`tasks.pose.JOINTS` are looked for, and joints that the data lacks are not visible.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from skipconv_jax.data.clips import PoseClip
from skipconv_jax.data.videos import BoxTrack, VideoWindow, make_track
from skipconv_jax.tasks.pose import JOINTS


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
        absent = [k for k in ("images", "annotations", "categories") if k not in content]
        if absent:
            raise ValueError(f"`file` (={str(file)!r}) must have {', '.join(absent)}.")
        images = [_image(folder, file, entry) for entry in content["images"]]
        annotations: dict[int, list[dict[str, Any]]] = {image.id: [] for image in images}
        for entry in content["annotations"]:
            if entry.get("image_id") not in annotations:
                raise ValueError(
                    f"{file}: annotation {entry.get('id')} names image "
                    f"{entry.get('image_id')}, which is not in `images`."
                )
            annotations[entry["image_id"]].append(entry)
        videos: dict[str, list[_Image]] = {}
        for image in sorted(images, key=lambda i: (i.video, i.order)):
            videos.setdefault(image.video, []).append(image)
        if not videos:
            raise ValueError(f"`file` (={str(file)!r}) must list at least one image.")
        return cls(videos, annotations, sorted(content["categories"], key=lambda c: c["id"]))


def _natural(name: str) -> tuple[Any, ...]:
    """Sorts frame 2 before frame 10."""
    parts = re.split(r"(\d+)", name)
    return tuple((1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts)


def _image(folder: Path, file: Path, entry: dict[str, Any]) -> _Image:
    if "id" not in entry or "file_name" not in entry:
        raise ValueError(f"{file}: an image has no id or no file_name: {entry}.")
    name = str(entry["file_name"])
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
    order = (0, entry["frame_id"]) if "frame_id" in entry else (1, _natural(name))
    return _Image(int(entry["id"]), path, str(video), order, int(height), int(width))


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
        category = annotation.get("category_id")
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
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or min(box[2:]) <= 0:
        raise ValueError(
            f"Annotation {annotation.get('id')} has `bbox` (={box}); it must be [x, y, width, "
            "height] with positive sides."
        )
    x, y, width, height = (float(v) for v in box)
    return [x, y, x + width, y + height]


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


def _columns(parsed: CocoFolder) -> dict[int, list[int]]:
    """Per category: where each of our joints stands in its keypoints, -1 where it is missing."""
    columns = {}
    for category in parsed.categories:
        names = [str(n).lower().replace(" ", "_") for n in category.get("keypoints", [])]
        found = [names.index(joint) if joint in names else -1 for joint in JOINTS]
        if max(found) >= 0:
            columns[category["id"]] = found
    if not columns:
        raise ValueError(
            f"`categories` must name `keypoints` among {JOINTS}; found "
            f"{[c.get('keypoints') for c in parsed.categories]}."
        )
    return columns


def _clip(
    name: str, images: list[_Image], parsed: CocoFolder, columns: dict[int, list[int]]
) -> PoseClip:
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
            order = np.array(columns[persons[0]["category_id"]])
            points = np.array(persons[0]["keypoints"], np.float32).reshape(-1, 3)[order]
            joints[t], visible[t] = points[:, :2], (points[:, 2] > 0) & (order >= 0)
            # COCO's box has edges; ours names its outermost pixels.
            boxes[t] = np.array(_edges(persons[0])) - [0, 0, 1, 1]
    known = np.flatnonzero(~np.isnan(boxes[:, 0]))
    if not len(known):
        raise ValueError(f"Video {name} shows no person with keypoints.")
    nearest = np.abs(np.arange(len(images))[:, None] - known).argmin(axis=1)
    height, width = shapes.pop()
    return PoseClip(
        name=name,
        joints=joints,
        visible=visible,
        boxes=boxes[known[nearest]],
        height=height,
        width=width,
        encoded=lambda t: images[t].path.read_bytes(),
    )
