"""JHMDB in the folders it is distributed in; the synthetic twin writes the same layout.

Rename_Images/<class>/<clip>/00001.png ...
joint_positions/<class>/<clip>/joint_positions.mat      pos_img (2, 15, T), x then y, 1-based
puppet_mask/<class>/<clip>/puppet_mask.mat              part_mask (H, W, T) uint8
splits/<class>_test_split<k>.txt                        `<clip>.avi 1` (train) or `2` (test)
sub_splits/<class>_test_split_<k>.txt                   the 316 clips of sub-JHMDB
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from skipconv_jax import json_files
from skipconv_jax.data import images, mat_files
from skipconv_jax.data.clips import PoseClip, check_frames, mask_boxes
from skipconv_jax.data.folders import read_note
from skipconv_jax.data.skeleton import JOINTS, from_matlab

SUBSETS = ("full", "sub")
PARTS = ("train", "test")
_IMAGES = "Rename_Images"
_SPLIT_NAME = re.compile(r"(?P<action>.+)_test_split_?(?P<number>\d+)\.txt")


class DamagedClipError(ValueError):
    """A clip that cannot be used; `problems` lists every fault found as (path, what is wrong)."""

    def __init__(self, name: str, problems: list[tuple[str, str]]) -> None:
        self.name = name
        self.problems = problems
        lines = "; ".join(f"{path}: {fault}" for path, fault in problems)
        super().__init__(
            f"Clip {name} is damaged: {lines}. Fetch these files again or leave it out."
        )


@dataclasses.dataclass(frozen=True)
class JhmdbFolder:
    """The dataset in a folder of the original layout.

    Args:
      root: the folder with `Rename_Images`, `joint_positions`, `puppet_mask` and `splits`.

    Raises:
      ValueError: `root` has no `Rename_Images` or no `joint_positions`.
    """

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        absent = [d for d in (_IMAGES, "joint_positions") if not (self.root / d).is_dir()]
        if absent:
            raise ValueError(
                f"`root` (={str(self.root)!r}) must contain {' and '.join(absent)}. Unpack JHMDB's "
                "Rename_Images, joint_positions, puppet_mask, splits and sub_splits there, or "
                "write a synthetic set with `python -m skipconv_jax.data.synthetic_pose --out DIR`."
            )

    @property
    def mirrorable(self) -> bool:
        """Whether a mirrored frame is a valid one: not where colours tell left from right."""
        note = read_note(self.root)
        return note is None or note.mirrorable

    def names(self) -> list[str]:
        """Every clip that has a folder of images, `<class>/<clip>`, sorted."""
        images = self.root / _IMAGES
        return sorted(
            f"{action.name}/{clip.name}"
            for action in images.iterdir()
            if action.is_dir() and not action.name.startswith(".")
            for clip in action.iterdir()
            if clip.is_dir() and not clip.name.startswith(".")
        )

    def actions(self) -> list[str]:
        """Classes named by the split files, or by the folders where there are none, sorted."""
        found = {m["action"] for m, _ in self._split_files("full")}
        found |= {m["action"] for m, _ in self._split_files("sub")}
        return sorted(found or {name.partition("/")[0] for name in self.names()})

    def split(self, part: str, number: int = 1, subset: str = "full") -> list[str]:
        """Names of a split's clips as the lists give them, whether their files are here or not.

        Args:
          part: `train` or `test`.
          number: 1, 2 or 3.
          subset: `full` (928 clips) or `sub` (316 clips, whole body in view: the paper's).

        Raises:
          ValueError: unknown `part` or `subset`, no list of that split, or a bad line.
        """
        if part not in PARTS:
            raise ValueError(f"`part` (={part!r}) must be one of {PARTS}.")
        files = [
            (m["action"], f) for m, f in self._split_files(subset) if int(m["number"]) == number
        ]
        if not files:
            raise ValueError(
                f"`number` (={number}) must name a split of subset {subset!r}: no file in "
                f"{self.root / _split_folder(subset)} ends in _test_split{number}.txt."
            )
        wanted = str(PARTS.index(part) + 1)
        names = []
        for action, file in files:
            try:
                lines = file.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{file}, byte {error.start}, must be text: fetch it again."
                ) from error
            for line_number, line in enumerate(lines, 1):
                words = line.split()
                if not words:
                    continue
                if len(words) != 2 or words[1] not in ("0", "1", "2"):
                    raise ValueError(
                        f"{file}, line {line_number} (={json_files.brief(line)}) must read "
                        "`<clip>.avi 1` or `2`."
                    )
                if words[1] == wanted:
                    names.append(f"{action}/{words[0].removesuffix('.avi')}")
        return sorted(names)

    def _split_files(self, subset: str) -> Iterable[tuple[re.Match[str], Path]]:
        if subset not in SUBSETS:
            raise ValueError(f"`subset` (={subset!r}) must be one of {SUBSETS}.")
        folder = self.root / _split_folder(subset)
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        matches = ((_SPLIT_NAME.fullmatch(f.name), f) for f in files)
        return [(m, f) for m, f in matches if m]

    def frame_paths(self, name: str) -> list[Path]:
        """The image files of a clip in order."""
        return sorted((self.root / _IMAGES / name).glob("[0-9]*.png"))

    def clip(self, name: str, decode_all: bool = False) -> PoseClip:
        """Reads a clip's annotations; its frames are read when asked for.

        Frames where the mask is empty take the box of the nearest frame that has one.

        Args:
          name: `<class>/<clip>`.
          decode_all: decode every frame now, to find damaged ones.

        Raises:
          DamagedClipError: files are missing, unreadable or disagree on the number of frames.
        """
        problems: list[tuple[str, str]] = []
        paths = self.frame_paths(name)
        joints = self._joints(name, problems)
        masks = self._masks(name, problems)
        shape = check_frames(self.root, paths, decode_all, problems)
        if not paths:
            problems.append((f"{_IMAGES}/{name}", "no images"))
        if joints is not None and paths and len(joints) != len(paths):
            problems.append((_mat("joint_positions", name), _disagree(len(joints), len(paths))))
        if masks is not None and paths and len(masks) != len(paths):
            problems.append((_mat("puppet_mask", name), _disagree(len(masks), len(paths))))
        if masks is not None and shape is not None and masks.shape[1:] != shape:
            problems.append(
                (_mat("puppet_mask", name), f"masks of {masks.shape[1:]}, images {shape}")
            )
        if problems or joints is None or masks is None or shape is None:
            raise DamagedClipError(name, problems)
        height, width = shape
        inside = (joints >= 0) & (joints <= np.array([width - 1, height - 1], np.float32))
        return PoseClip(
            name=name,
            joints=joints,
            visible=np.asarray(inside.all(axis=-1)),
            boxes=_fill_gaps(mask_boxes(masks)),
            height=height,
            width=width,
            encoded=lambda t: images.read(paths[t]),
            mirrorable=self.mirrorable,
        )

    def clips(self, names: Iterable[str]) -> tuple[list[PoseClip], list[DamagedClipError]]:
        """Reads clips; those that cannot be used are returned apart, each with its faults."""
        good, bad = [], []
        for name in names:
            try:
                good.append(self.clip(name))
            except DamagedClipError as error:
                bad.append(error)
        return good, bad

    def _joints(self, name: str, problems: list[tuple[str, str]]) -> np.ndarray | None:
        path = _mat("joint_positions", name)
        array = _read_mat(self.root, path, "pos_img", problems)
        if array is None:
            return None
        if array.ndim != 3 or array.shape[:2] != (2, len(JOINTS)):
            problems.append((path, f"pos_img of shape {array.shape}, not (2, {len(JOINTS)}, T)"))
            return None
        return np.ascontiguousarray(from_matlab(array).transpose(2, 1, 0).astype(np.float32))

    def _masks(self, name: str, problems: list[tuple[str, str]]) -> np.ndarray | None:
        path = _mat("puppet_mask", name)
        array = _read_mat(self.root, path, "part_mask", problems)
        if array is None:
            return None
        if array.ndim != 3 or not array.any():
            problems.append((path, f"part_mask of shape {array.shape} is empty or not (H, W, T)"))
            return None
        return array.transpose(2, 0, 1) > 0


def _split_folder(subset: str) -> str:
    return {"full": "splits", "sub": "sub_splits"}[subset]


def _mat(kind: str, name: str) -> str:
    return f"{kind}/{name}/{kind}.mat"


def _disagree(found: int, frames: int) -> str:
    return f"holds {found} frames, the clip has {frames} images"


def _read_mat(
    root: Path, path: str, key: str, problems: list[tuple[str, str]]
) -> np.ndarray | None:
    try:
        return mat_files.read(root / path, key)
    except mat_files.MatError as error:
        problems.append((path, str(error)))
    return None


def _fill_gaps(boxes: np.ndarray) -> np.ndarray:
    known = np.flatnonzero(~np.isnan(boxes[:, 0]))
    nearest = np.abs(np.arange(len(boxes))[:, None] - known).argmin(axis=1)
    return boxes[known[nearest]]
