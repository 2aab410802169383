"""One annotated clip of a person, wherever its frames come from."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skipconv_jax.data import images


@dataclasses.dataclass(frozen=True)
class PoseClip:
    """A clip of T frames of H x W pixels with one person.

    Attributes:
      name: `<class>/<clip>`.
      joints: `(T, 15, 2)` float32, x then y, 0-based pixels.
      visible: `(T, 15)` bool: annotated, and inside the image.
      boxes: `(T, 4)` float32: x1, y1, x2, y2 of the person's mask, both corners inside it, 0-based.
      height: of a frame in pixels.
      width: of a frame in pixels.
      encoded: `t -> bytes` of the PNG or JPEG of frame t, 0-based.
      mirrorable: whether a mirrored frame is a valid one: not where colours tell left from right.
    """

    name: str
    joints: np.ndarray
    visible: np.ndarray
    boxes: np.ndarray
    height: int
    width: int
    encoded: Callable[[int], bytes] = dataclasses.field(repr=False, compare=False)
    mirrorable: bool = True

    @property
    def length(self) -> int:
        """Frames of the clip, T."""
        return len(self.joints)

    @property
    def action(self) -> str:
        """The class the clip belongs to."""
        return self.name.partition("/")[0]

    @property
    def sizes(self) -> np.ndarray:
        """`(T,)` float32: max(x2 - x1, y2 - y1), what PCK scales its limit with."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).max(axis=1)

    def frames(self, indices: Iterable[int]) -> np.ndarray:
        """Decodes frames: `(n, H, W, 3)` uint8, RGB.

        Raises:
          ValueError: a frame is damaged or of another size than the clip.
        """
        times = [int(t) for t in indices]
        out = np.empty((len(times), self.height, self.width, 3), np.uint8)
        for i, t in enumerate(times):
            image = decode_image(self.encoded(t), f"frame {t + 1} of {self.name}")
            if image.shape != out.shape[1:]:
                raise ValueError(
                    f"Frame {t + 1} of {self.name} has shape {image.shape}, the clip has "
                    f"{out.shape[1:]}; all frames of a clip must have one size."
                )
            out[i] = image
        return out


class LazyClips(Sequence[PoseClip]):
    """Clips that are read when asked for; names and lengths are known without reading.

    Attributes:
      names: of the clips.
      lengths: frames of each.
      mirrorable: whether all of them are.
    """

    names: list[str]
    lengths: list[int]
    mirrorable: bool

    def _load(self, index: int) -> PoseClip:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._load(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"`index` (={index}) must lie in a list of {len(self)} clips.")
        return self._load(index % len(self))


def names_of(clips: Sequence[PoseClip]) -> list[str]:
    """Names of the clips, without reading them where that can be avoided."""
    return clips.names if isinstance(clips, LazyClips) else [clip.name for clip in clips]


def lengths_of(clips: Sequence[PoseClip]) -> list[int]:
    """Frames of the clips, without reading them where that can be avoided."""
    return clips.lengths if isinstance(clips, LazyClips) else [clip.length for clip in clips]


def all_mirrorable(clips: Sequence[PoseClip]) -> bool:
    """Whether mirrored frames of these clips are valid ones."""
    if isinstance(clips, LazyClips):
        return clips.mirrorable
    return all(clip.mirrorable for clip in clips)


def decode_image(data: bytes, what: str) -> np.ndarray:
    """Bytes of an image file to `(H, W, 3)` uint8, RGB, upright; see `data.images`.

    Raises:
      ValueError: the bytes are no whole image; `what` names them in the message.
    """
    return images.decode(data, what)


def is_whole_image(data: bytes) -> bool:
    """Whether the bytes are an image of a known kind and none of them are missing.

    Decoders fill the missing part of a truncated file with grey and say nothing.
    """
    try:
        images.header(data, "it")
    except images.ImageError:
        return False
    return True


def check_frames(
    root: Path, paths: Iterable[Path], decode_all: bool, problems: list[tuple[str, str]]
) -> tuple[int, int] | None:
    """Size of numbered frames, from the first one; with `decode_all` every frame is decoded."""
    shape = None
    for number, path in enumerate(paths, 1):
        relative = path.relative_to(root).as_posix()
        if int("".join(c for c in path.stem if c.isdigit())) != number:
            problems.append((relative, f"frame {number} is missing before it"))
            break
        if number > 1 and not decode_all:
            continue
        try:
            found = decode_image(path.read_bytes(), relative).shape[:2]
        except (ValueError, OSError) as error:
            problems.append((relative, str(error)))
            continue
        shape = shape or (found[0], found[1])
        if found != shape:
            problems.append((relative, f"image of {found}, the others are {shape}"))
    return shape


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """Tight boxes of masks `(T, H, W)`: `(T, 4)` float32, corners inside; NaN where empty."""
    boxes = np.full((len(masks), 4), np.nan, np.float32)
    columns: np.ndarray = np.any(masks, axis=1)
    rows: np.ndarray = np.any(masks, axis=2)
    for t in np.flatnonzero(np.any(columns, axis=1)):
        x, y = np.flatnonzero(columns[t]), np.flatnonzero(rows[t])
        boxes[t] = x[0], y[0], x[-1], y[-1]
    return boxes
