"""Boxes of one video by frame, from a COCO-style JSON or a MOTChallenge text file.

COCO: an image's `frame_id` is its 0-based number in the video; without any, the images in the
natural order of their names are frames 0, 1, 2, ... Only listed images are annotated, `iscrowd`
boxes are regions in which nothing counts.

MOT: `frame,id,x,y,width,height[,confidence,class,visibility]`, frames and pixels from 1. Rows of
confidence 0 are no objects; static persons, persons on vehicles, distractors and reflections among
them are regions in which nothing counts, as in MOTChallenge's own evaluation.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from skipconv_jax import json_files
from skipconv_jax.json_files import Count, Finite, Positive

MOT_CLASSES = (
    "pedestrian",
    "person on vehicle",
    "car",
    "bicycle",
    "motorbike",
    "non motorized vehicle",
    "static person",
    "distractor",
    "occluder",
    "occluder on the ground",
    "occluder full",
    "reflection",
)
_NEITHER = {"person on vehicle", "static person", "distractor", "reflection"}
_ROW = "frame,id,x,y,width,height[,confidence,class,visibility]"


@dataclasses.dataclass(frozen=True)
class FrameBoxes:
    """One annotated frame.

    Attributes:
      boxes: (M, 4) x1, y1, x2, y2, edges in pixels of the frame.
      labels: (M,) indices of classes.
      ignored: (K, 4) regions in which nothing counts.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray


@dataclasses.dataclass(frozen=True)
class VideoLabels:
    """A video's boxes.

    Attributes:
      path: of the file.
      classes: names that a label indexes.
      frames: by 0-based number; what is missing is not annotated.
    """

    path: Path
    classes: tuple[str, ...]
    frames: Mapping[int, FrameBoxes]


class _Image(msgspec.Struct, frozen=True):
    id: int
    file_name: str = ""
    frame_id: Count | None = None


class _Annotation(msgspec.Struct, frozen=True):
    image_id: int
    category_id: int
    bbox: tuple[Finite, Finite, Positive, Positive]
    iscrowd: bool | Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None


class _Category(msgspec.Struct, frozen=True):
    id: int
    name: str


class _Coco(msgspec.Struct, frozen=True):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_labels(path: str | Path) -> VideoLabels:
    """Labels of a `.json` (COCO) or `.txt` (MOT) file.

    Raises:
      ValueError: another ending, no such file, or content that is neither; says where.
    """
    path = Path(path)
    if path.suffix.lower() not in (".json", ".txt"):
        raise ValueError(
            f"`labels` (={str(path)!r}) must be a COCO-style .json or a MOTChallenge .txt file."
        )
    if path.suffix.lower() == ".json":
        return _read_coco(path)
    try:
        return _read_mot(path, path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"`labels` (={str(path)!r}) can't be read: {reason}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"`labels` (={str(path)!r}) must be UTF-8 text: {error}.") from error


def _read_coco(path: Path) -> VideoLabels:
    content = json_files.read(path, _Coco)
    numbers = _numbers(path, content.images)
    index = {category.id: i for i, category in enumerate(content.categories)}
    rows: dict[int, list[_Annotation]] = {number: [] for number in numbers.values()}
    for at, entry in enumerate(content.annotations):
        if entry.image_id not in numbers or entry.category_id not in index:
            raise ValueError(
                f"{path}: `annotations[{at}]` (image {entry.image_id}, category "
                f"{entry.category_id}) must name an image and a category that the file lists."
            )
        rows[numbers[entry.image_id]].append(entry)
    frames = {}
    for number, entries in rows.items():
        objects = [entry for entry in entries if not entry.iscrowd]
        crowds = [entry for entry in entries if entry.iscrowd]
        frames[number] = FrameBoxes(
            _corners([entry.bbox for entry in objects]),
            np.array([index[entry.category_id] for entry in objects], np.int64),
            _corners([entry.bbox for entry in crowds]),
        )
    return VideoLabels(path, tuple(category.name for category in content.categories), frames)


def _numbers(path: Path, images: list[_Image]) -> dict[int, int]:
    """The frame of every image's id."""
    given = [image.frame_id for image in images if image.frame_id is not None]
    if len(given) not in (0, len(images)):
        raise ValueError(
            f"{path}: `frame_id` must be given for all {len(images)} images or for none; "
            f"{len(given)} have it."
        )
    if given:
        numbers = {image.id: int(image.frame_id or 0) for image in images}
    else:
        ordered = sorted(images, key=lambda image: _natural(image.file_name))
        numbers = {image.id: number for number, image in enumerate(ordered)}
    if len(numbers) < len(images) or len(set(numbers.values())) < len(images):
        raise ValueError(
            f"{path}: every image must have an `id` and, of one video, a `frame_id` of its own."
        )
    return numbers


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts frame 2 before frame 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)]


def _corners(boxes: list[tuple[float, float, float, float]]) -> np.ndarray:
    found = np.array(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1)


def _read_mot(path: Path, text: str) -> VideoLabels:
    rows: dict[int, list[tuple[tuple[float, float, float, float], int, bool]]] = {}
    for at, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        number, box, label, counts = _mot_row(f"{path}:{at}", line)
        objects = rows.setdefault(number, [])
        if counts or MOT_CLASSES[label] in _NEITHER:
            objects.append((box, label, counts))
    if not rows:
        raise ValueError(f"`labels` (={str(path)!r}) must have rows {_ROW}; it has none.")
    frames = {}
    # The file covers its sequence: a frame without a row shows nothing.
    for number in range(max(rows) + 1):
        objects = rows.get(number, [])
        frames[number] = FrameBoxes(
            _corners([box for box, _, counts in objects if counts]),
            np.array([label for _, label, counts in objects if counts], np.int64),
            _corners([box for box, _, counts in objects if not counts]),
        )
    return VideoLabels(path, MOT_CLASSES, frames)


def _mot_row(where: str, line: str) -> tuple[int, tuple[float, float, float, float], int, bool]:
    """0-based frame, x, y, width, height from pixel 0, class, and whether it counts."""
    try:
        values = [float(part) for part in line.split(",")]
    except ValueError:
        values = []
    # 10^7 frames are a week of video; more is no frame number, and would fill the memory.
    good = len(values) >= 6 and all(map(math.isfinite, values))
    if not good or not 1 <= values[0] <= 1e7 or values[0] % 1 or min(values[4:6]) <= 0:
        raise ValueError(
            f"{where}: `{line[:80]}` must be {_ROW}: numbers, frames from 1, positive sides."
        )
    label = int(values[7]) if len(values) > 7 and values[7] > 0 else 1
    if label > len(MOT_CLASSES):
        raise ValueError(
            f"{where}: `class` (={label}) must be one of MOTChallenge's 1 to {len(MOT_CLASSES)}, "
            "or -1 for pedestrians; write other classes as COCO-style JSON."
        )
    _, _, x, y, width, height = values[:6]
    counts = len(values) < 7 or values[6] != 0
    return int(values[0]) - 1, (x - 1, y - 1, width, height), label - 1, counts
