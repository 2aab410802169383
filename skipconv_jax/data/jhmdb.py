"""JHMDB as a TFDS dataset, written and read without TensorFlow: one record per clip.

    python -m skipconv_jax.data.prepare jhmdb --manual_dir JHMDB --data_dir data/tfds

Configs: `full` (928 clips), `sub` (316, whole body in view, the paper's), `synthetic` (the twin).
The three train/test splits overlap, so clips are stored once, in TFDS splits named after their part
in each of the three: `clips_121` is train in split 1, test in split 2, train in split 3 (0: not
listed). `load` puts the parts together.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from skipconv_jax.data import records
from skipconv_jax.data.clips import LazyClips, PoseClip
from skipconv_jax.data.figure import ACTIONS as SYNTHETIC_ACTIONS
from skipconv_jax.data.jhmdb_folder import PARTS, JhmdbFolder
from skipconv_jax.data.skeleton import JOINTS
from skipconv_jax.extras import required

with required():
    import tensorflow_datasets as tfds

SPLITS = (1, 2, 3)
ACTIONS = (
    "brush_hair",
    "catch",
    "clap",
    "climb_stairs",
    "golf",
    "jump",
    "kick_ball",
    "pick",
    "pour",
    "pullup",
    "push",
    "run",
    "shoot_ball",
    "shoot_bow",
    "shoot_gun",
    "sit",
    "stand",
    "swing_baseball",
    "throw",
    "walk",
    "wave",
)
"""The 21 classes; `label` of a record is an index into them."""

EXPECTED_CLIPS = {"full": 928, "sub": 316}
_INSTRUCTIONS = """\
From the JHMDB site fetch Rename_Images, joint_positions, puppet_mask, splits and sub_splits, unpack
them side by side into one folder and pass it as manual_dir. Without the data,
`python -m skipconv_jax.data.synthetic_pose --out DIR` writes a synthetic set of the same layout.
"""


@dataclasses.dataclass
class JhmdbConfig(tfds.core.BuilderConfig):
    """A variant of the dataset: which lists it follows and what its classes are called."""

    subset: str = "full"
    actions: tuple[str, ...] = ACTIONS


def membership(folder: JhmdbFolder, subset: str) -> dict[str, str]:
    """Each listed clip's part in the three splits, for example `121`; 0 where it is not listed.

    Raises:
      ValueError: the folder has none of the lists.
    """
    parts: dict[str, list[str]] = {}
    for k, number in enumerate(SPLITS):
        for p, part in enumerate(PARTS, 1):
            for name in folder.split(part, number, subset):
                parts.setdefault(name, ["0"] * len(SPLITS))[k] = str(p)
    return {name: "".join(part) for name, part in sorted(parts.items())}


class Jhmdb(tfds.core.GeneratorBasedBuilder):
    """JHMDB: human actions with 15 joints per frame, 320 x 240, 15 to 40 frames a clip.

    Args:
      leave_out: names of clips not to write; `data.prepare` passes the damaged ones.
      on_item: called with the name of each one that was written.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "One record per clip, frames as distributed."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = _INSTRUCTIONS
    BUILDER_CONFIGS: ClassVar = [
        JhmdbConfig(name="full", description="All 928 clips."),
        JhmdbConfig(name="sub", description="Sub-JHMDB: 316 clips.", subset="sub"),
        JhmdbConfig(name="synthetic", description="The twin.", actions=SYNTHETIC_ACTIONS),
    ]

    url_infos: ClassVar[dict[str, Any]] = {}  # nothing is downloaded

    def __init__(
        self,
        *,
        leave_out: Collection[str] = (),
        on_item: Callable[[str], object] = str,
        **kwargs: Any,
    ) -> None:
        self._leave_out = frozenset(leave_out)
        self._on_item = on_item
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        feature, joints = tfds.features, (None, len(JOINTS))
        return records.dataset_info(
            self,
            "Joint-annotated human motion data base: clips of one acting person.",
            {
                "name": feature.Text(),
                "label": feature.ClassLabel(names=list(self.builder_config.actions)),
                "frames": feature.Sequence(
                    feature.Image(shape=(None, None, 3), encoding_format="png")
                ),
                "joints": feature.Tensor(shape=(*joints, 2), dtype=np.float32),
                "visible": feature.Tensor(shape=joints, dtype=np.bool_),
                "boxes": feature.Tensor(shape=(None, 4), dtype=np.float32),
                "size": feature.Tensor(shape=(2,), dtype=np.int32),
                "mirrorable": feature.Scalar(dtype=np.bool_),
            },
            homepage="http://jhmdb.is.tue.mpg.de",
            citation="Jhuang et al., Towards understanding action recognition, ICCV 2013",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        source = JhmdbFolder(Path(dl_manager.manual_dir))
        groups: dict[str, list[str]] = {}
        for name, parts in membership(source, self.builder_config.subset).items():
            if name not in self._leave_out:
                groups.setdefault(f"clips_{parts}", []).append(name)
        if not groups:
            raise ValueError(f"No clip of {source.root} is left to write; see the report.")
        return {
            split: self._generate_examples(source, split, names)
            for split, names in sorted(groups.items())
        }

    def _generate_examples(
        self, source: JhmdbFolder, split: str, names: list[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        entries = self.info.metadata["records"].setdefault(split, [])
        self.info.metadata["mirrorable"] = source.mirrorable
        for index, name in enumerate(names):
            clip = source.clip(name)
            entries.append([name, clip.length])
            yield (
                index,
                {
                    "name": name,
                    "label": clip.action,
                    "frames": [clip.encoded(t) for t in range(clip.length)],
                    "joints": clip.joints,
                    "visible": clip.visible,
                    "boxes": clip.boxes,
                    "size": np.array([clip.height, clip.width], np.int32),
                    "mirrorable": clip.mirrorable,
                },
            )
            self._on_item(name)


def to_clip(record: records.Record) -> PoseClip:
    """A clip from its record; frames stay encoded until they are asked for."""
    frames = record["frames"]
    height, width = (int(n) for n in record["size"])
    return PoseClip(
        name=records.text(record["name"]),
        joints=np.asarray(record["joints"], np.float32),
        visible=records.flag(record["visible"]),
        boxes=np.asarray(record["boxes"], np.float32),
        height=height,
        width=width,
        encoded=lambda t: frames[t],
        mirrorable=bool(record["mirrorable"]),
    )


class JhmdbClips(LazyClips):
    """Clips of a prepared dataset, each read from its record when it is asked for."""

    def __init__(self, source: records.Records, keys: list[records.RecordKey]) -> None:
        self._source, self._keys = source, keys
        self.names = [str(key.entry[0]) for key in keys]
        self.lengths = [int(key.entry[1]) for key in keys]
        self.mirrorable = source.metadata.mirrorable

    def _load(self, index: int) -> PoseClip:
        return to_clip(self._source.read(self._keys[index]))

    @property
    def labels(self) -> list[str]:
        """Class of every clip."""
        return [name.partition("/")[0] for name in self.names]


def load(data_dir: Path | str, part: str, number: int = 1, config: str = "full") -> JhmdbClips:
    """Clips of one part of one split of a prepared dataset, sorted by name.

    Args:
      data_dir: folder the dataset was prepared in.
      part: `train` or `test`.
      number: of the split, 1 to 3.
      config: `full`, `sub` or `synthetic`.

    Raises:
      ValueError: an argument is unknown, or the dataset was not prepared.
    """
    if part not in PARTS:
        raise ValueError(f"`part` (={part!r}) must be one of {PARTS}.")
    if number not in SPLITS:
        raise ValueError(f"`number` (={number}) must be one of {SPLITS}.")
    source = records.Records(records.folder(data_dir, "jhmdb", config))
    wanted = str(PARTS.index(part) + 1)
    offset = len("clips_") + SPLITS.index(number)
    for split in source.metadata.records:
        if not re.fullmatch("clips_[0-2]{3}", split):
            raise records.DamagedRecordsError(
                f"{source.path}: `records` must be of splits as 'clips_112', not {split[:80]!r}."
            )
    keys = [key for key in source.catalogue() if key.split[offset] == wanted]
    return JhmdbClips(source, sorted(keys, key=lambda key: key.entry[0]))
