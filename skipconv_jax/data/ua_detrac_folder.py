"""UA-DETRAC in the folders it is distributed in; the synthetic twin writes the same layout.

    Insight-MVT_Annotation_{Train,Test}/MVI_x/img00001.jpg ...     960 x 540, 25 fps
    DETRAC-{Train,Test}-Annotations-XML/MVI_x.xml

Frames are numbered from 1. A frame without an entry is not annotated: it is no negative. Regions to
ignore belong to a whole sequence and may be missing. Boxes may reach past the image's edges and are
kept as they are. Coordinates are the files' own.
"""

import dataclasses
import functools
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from skipconv_jax import json_files
from skipconv_jax.data import images
from skipconv_jax.data.clips import check_frames
from skipconv_jax.data.labelled_videos import BoxTrack, VideoWindow, make_track

PARTS = ("train", "test")
_LARGEST = 2**31 - 1
VEHICLES = ("car", "bus", "van", "others")


def _sequences(numbers: str) -> tuple[str, ...]:
    return tuple(f"MVI_{number}" for number in numbers.split())


TRAIN_SEQUENCES = _sequences(
    """
    20011 20012 20032 20033 20034 20035 20051 20052 20061 20062 20063 20064 20065 39761 39771
    39781 39801 39811 39821 39851 39861 39931 40131 40141 40152 40161 40162 40171 40172 40181
    40191 40192 40201 40204 40211 40212 40213 40241 40243 40244 40732 40751 40752 40871 40962
    40963 40981 40991 40992 41063 41073 63521 63525 63544 63552 63553 63554 63561 63562 63563
    """
)
TEST_SEQUENCES = _sequences(
    """
    39031 39051 39211 39271 39311 39361 39371 39401 39501 39511 40701 40711 40712 40714 40742
    40743 40761 40762 40763 40771 40772 40773 40774 40775 40792 40793 40851 40852 40853 40854
    40855 40863 40864 40891 40892 40901 40902 40903 40904 40905
    """
)
EXPECTED = {"train": TRAIN_SEQUENCES, "test": TEST_SEQUENCES}


class DamagedSequenceError(ValueError):
    """A sequence that cannot be used; `problems` lists every fault as (path, what is wrong)."""

    def __init__(self, name: str, problems: list[tuple[str, str]]) -> None:
        self.name = name
        self.problems = problems
        lines = "; ".join(f"{path}: {fault}" for path, fault in problems[:5])
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        super().__init__(
            f"Sequence {name} is damaged: {lines}{more}. Fetch these files again or omit it."
        )


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What an XML file says.

    Attributes:
      name: of the sequence.
      attributes: of the sequence: `camera_state` and `sence_weather` (the files' spelling).
      ignored: `(K, 4)` float32, x1, y1, x2, y2.
      frames: frame number, from 1, to (boxes `(N, 4)`, labels `(N,)`, ids `(N,)`).
    """

    name: str
    attributes: dict[str, str]
    ignored: np.ndarray
    frames: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]

    def track(self, length: int) -> BoxTrack:
        """The boxes of a sequence of `length` frames."""
        return make_track([self.frames.get(t) for t in range(1, length + 1)])


def _number(element: ElementTree.Element, key: str) -> float:
    text = element.get(key)
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"<{element.tag}> has {key}={json_files.brief(text)}, not a number")
    # Pixels, numbers of frames and identities: past this no file means what it says.
    if abs(value) > _LARGEST:
        raise ValueError(
            f"<{element.tag}> has {key}={json_files.brief(text)}, at most {_LARGEST} is read"
        )
    return value


def _box(element: ElementTree.Element | None, where: str) -> list[float]:
    if element is None:
        raise ValueError(f"{where} has no <box>")
    left, top, width, height = (_number(element, k) for k in ("left", "top", "width", "height"))
    if width <= 0 or height <= 0:
        raise ValueError(f"{where} has a box of {width} x {height}")
    return [left, top, left + width, top + height]


def _target(target: ElementTree.Element, where: str) -> tuple[list[float], int, int]:
    where = f"target {target.get('id')} of {where}"
    attribute = target.find("attribute")
    kind = None if attribute is None else attribute.get("vehicle_type")
    if kind not in VEHICLES:
        raise ValueError(
            f"{where} has vehicle_type={json_files.brief(kind)}, not one of {VEHICLES}"
        )
    return _box(target.find("box"), where), VEHICLES.index(kind), int(_number(target, "id"))


def parse_annotations(text: str | bytes) -> Annotations:
    """Reads an XML file of UA-DETRAC; the order of attributes and unknown elements do not matter.

    Raises:
      ValueError: the text is no such file, or an entry is not valid; says which.
    """
    try:
        root = ElementTree.fromstring(text)
    # An encoding that Python does not know is a LookupError, one it can't decode a ValueError.
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"no valid XML ({error})") from error
    name = root.get("name")
    if root.tag != "sequence" or not name:
        raise ValueError(f'begins with <{root.tag[:80]}>, not with <sequence name="...">')
    head = root.find("sequence_attribute")
    regions = [_box(box, "ignored_region") for box in root.findall("ignored_region/box")]
    frames: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for frame in root.findall("frame"):
        number = int(_number(frame, "num"))
        if number < 1 or number in frames:
            raise ValueError(f"frame {number} is below 1 or there twice")
        where = f"frame {number}"
        targets = [_target(t, where) for t in frame.findall("target_list/target")]
        frames[number] = (
            np.array([t[0] for t in targets], np.float32).reshape(-1, 4),
            np.array([t[1] for t in targets], np.int32),
            np.array([t[2] for t in targets], np.int32),
        )
    return Annotations(
        name=name,
        attributes={} if head is None else dict(head.attrib),
        ignored=np.array(regions, np.float32).reshape(-1, 4),
        frames=frames,
    )


@dataclasses.dataclass(frozen=True)
class DetracSequence:
    """A sequence: its images, its boxes, its regions to ignore."""

    name: str
    paths: list[Path] = dataclasses.field(repr=False)
    track: BoxTrack = dataclasses.field(repr=False)
    ignored: np.ndarray
    attributes: dict[str, str]
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class DetracFolder:
    """The dataset in a folder of the original layout.

    Args:
      root: the folder with `Insight-MVT_Annotation_Train` and its companions.

    Raises:
      ValueError: `root` has neither part.
    """

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        if not any(self._images(part).is_dir() for part in PARTS):
            raise ValueError(
                f"`root` (={str(self.root)!r}) must contain Insight-MVT_Annotation_Train or _Test. "
                "Unpack UA-DETRAC's images and DETRAC-*-Annotations-XML there, or write a "
                "synthetic set with `python -m skipconv_jax.data.synthetic_traffic --out DIR`."
            )

    def _images(self, part: str) -> Path:
        return self.root / f"Insight-MVT_Annotation_{part.capitalize()}"

    def _xml(self, part: str, name: str) -> Path:
        return self.root / f"DETRAC-{part.capitalize()}-Annotations-XML" / f"{name}.xml"

    @property
    def synthetic(self) -> bool:
        """Whether the generator wrote this folder."""
        return (self.root / "synthetic.json").is_file()

    def names(self, part: str) -> list[str]:
        """Sequences of a part that have images or annotations, sorted.

        Raises:
          ValueError: unknown `part`.
        """
        if part not in PARTS:
            raise ValueError(f"`part` (={part!r}) must be one of {PARTS}.")
        folders, files = self._images(part), self._xml(part, "x").parent
        found = {p.name for p in folders.glob("MVI_*") if p.is_dir()}
        return sorted(found | {p.stem for p in files.glob("MVI_*.xml")})

    def sequence(self, part: str, name: str, decode_all: bool = False) -> DetracSequence:
        """Reads a sequence's annotations and the size of its images.

        Args:
          part: `train` or `test`.
          name: of the sequence.
          decode_all: decode every frame now, to find damaged ones.

        Raises:
          DamagedSequenceError: files are missing, damaged or do not belong together.
        """
        problems: list[tuple[str, str]] = []
        paths = sorted((self._images(part) / name).glob("img[0-9]*.jpg"))
        relative = self._xml(part, name).relative_to(self.root).as_posix()
        annotations = _read_xml(self.root, relative, name, problems)
        if not paths:
            folder = (self._images(part) / name).relative_to(self.root).as_posix()
            problems.append((folder, "no images"))
        shape = check_frames(self.root, paths, decode_all, problems)
        if annotations is not None and paths and max(annotations.frames, default=0) > len(paths):
            last = max(annotations.frames)
            problems.append((relative, f"describes frame {last}, there are {len(paths)} images"))
        if problems or annotations is None or shape is None:
            raise DamagedSequenceError(name, problems)
        return DetracSequence(
            name,
            paths,
            annotations.track(len(paths)),
            annotations.ignored,
            annotations.attributes,
            *shape,
        )


def _read_xml(
    root: Path, path: str, name: str, problems: list[tuple[str, str]]
) -> Annotations | None:
    if not (root / path).is_file():
        problems.append((path, "missing"))
        return None
    try:
        found = parse_annotations((root / path).read_bytes())
    except ValueError as error:
        problems.append((path, str(error)))
        return None
    if found.name != name:
        problems.append((path, f"describes sequence {json_files.brief(found.name)}"))
    return found


class FolderVideos:
    """A part of the dataset as a source of videos, read straight from the folder.

    Args:
      folder: the dataset.
      part: `train` or `test`.
      names: sequences; by default those of the part that are whole.
    """

    classes = VEHICLES

    def __init__(self, folder: DetracFolder, part: str, names: Sequence[str] | None = None) -> None:
        self.damaged: list[DamagedSequenceError] = []
        self._sequences: list[DetracSequence] = []
        for name in folder.names(part) if names is None else names:
            try:
                self._sequences.append(folder.sequence(part, name))
            except DamagedSequenceError as error:
                if names is not None:
                    raise
                self.damaged.append(error)

    @functools.cached_property
    def names(self) -> list[str]:
        """Of the sequences."""
        return [s.name for s in self._sequences]

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Frames of each sequence."""
        return [len(s.paths) for s in self._sequences]

    def read(self, video: int, times: Sequence[int]) -> VideoWindow:
        """Frames of one sequence."""
        sequence = self._sequences[video]
        encoded = [images.read(sequence.paths[t]) for t in times]
        return VideoWindow(encoded, sequence.track.take(times), sequence.ignored)
