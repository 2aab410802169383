"""What the TFDS builders share: reading records without TensorFlow and without decoding frames.

A dataset is written in the order in which it was generated, and its `metadata.json` lists the
records of every TFDS split, so that names and lengths are known before any record is read.
"""

import contextlib
import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from skipconv_jax import json_files
from skipconv_jax.extras import required

with required():
    import tensorflow_datasets as tfds

Record = dict[str, Any]


class EncodedFrames(tfds.decode.Decoder):
    """Leaves images as the PNG or JPEG bytes they were distributed as."""

    def decode_example(self, example: Any) -> Any:
        return example

    # With `Sequence(Image)` TFDS asks for the whole sequence at once.
    decode_example_np = decode_batch_example = decode_batch_example_np = decode_example


def dataset_info(
    builder: tfds.core.DatasetBuilder, description: str, features: Mapping[str, Any], **more: str
) -> tfds.core.DatasetInfo:
    """Info of a dataset whose records stay in the order of generation."""
    return tfds.core.DatasetInfo(
        builder=builder,
        description=description,
        features=tfds.features.FeaturesDict(dict(features)),
        metadata=tfds.core.MetadataDict(records={}),
        disable_shuffling=True,
        **more,
    )


def folder(data_dir: Path | str, dataset: str, config: str) -> Path:
    """Folder of the newest version of a prepared dataset.

    Raises:
      ValueError: it was not prepared.
    """
    root = Path(data_dir) / dataset / config
    versions = [v for v in root.glob("[0-9]*.[0-9]*.[0-9]*") if (v / "metadata.json").is_file()]
    if not versions:
        raise ValueError(
            f"`data_dir` (={str(data_dir)!r}) must hold {dataset}/{config}; make it with "
            f"`python -m skipconv_jax.data.prepare {dataset} --config {config} --manual_dir DIR "
            f"--data_dir {data_dir}`."
        )
    return max(versions, key=lambda v: [int(n) for n in v.name.split(".")])


class DamagedRecordsError(ValueError):
    """A prepared dataset one of whose files is not as it was written."""


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turns whatever TFDS and the record format raise into one error that names the folder.

    They promise no kinds of errors: a flipped bit comes out as a RuntimeError of the record's
    checksum, a ParseError of the protocol buffers, a KeyError, or an AttributeError of None.
    """
    try:
        yield
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise DamagedRecordsError(
            f"{path} is damaged ({type(error).__name__}: {first[:300]}); delete this folder and "
            "prepare the dataset again."
        ) from error


class Metadata(msgspec.Struct, frozen=True):
    """What `metadata.json` says.

    Attributes:
      records: for each TFDS split a line per record: its name, then counts of frames.
      mirrorable: whether clips may be mirrored (JHMDB).
      classes: of objects (UA-DETRAC).
    """

    records: dict[str, list[Annotated[list[str | json_files.Count], msgspec.Meta(min_length=2)]]]
    mirrorable: bool = False
    classes: list[str] = []


@dataclasses.dataclass(frozen=True)
class RecordKey:
    """Where a record lies: TFDS split and index, and what its metadata line says."""

    split: str
    index: int
    entry: tuple[Any, ...]


class Records:
    """Random access to the records of a prepared dataset; frames stay encoded. Safe across threads.

    Args:
      path: folder of one version of one config.
      keep: records kept in memory, the most recently used ones.

    Raises:
      ValueError: a file of the folder is damaged; also when a record is read.
    """

    def __init__(self, path: Path, keep: int = 8) -> None:
        self.path = path
        self.metadata = json_files.read(path / "metadata.json", Metadata)
        for split, entries in self.metadata.records.items():
            for index, (name, *counts) in enumerate(entries):
                if not isinstance(name, str) or not all(isinstance(n, int) for n in counts):
                    place = f"$.records.{split}[{index}]"
                    raise json_files.JsonError(
                        path / "metadata.json", "it must be a name and counts of frames", place
                    )
        with _whole(path):
            self._builder = tfds.builder_from_directory(path)
        self._sources: dict[str, Any] = {}
        self._recent: OrderedDict[tuple[str, int], Record] = OrderedDict()
        self._keep = keep
        self._lock = threading.Lock()

    def catalogue(self) -> list[RecordKey]:
        """All records in order."""
        return [
            RecordKey(split, index, tuple(entry))
            for split, entries in self.metadata.records.items()
            for index, entry in enumerate(entries)
        ]

    def sizes(self) -> dict[str, int]:
        """Records in each TFDS split, as the files say."""
        with _whole(self.path):
            return {name: info.num_examples for name, info in self._builder.info.splits.items()}

    def read(self, key: RecordKey) -> Record:
        """One record as NumPy arrays and bytes."""
        place = (key.split, key.index)
        with self._lock:
            if place in self._recent:
                self._recent.move_to_end(place)
                return self._recent[place]
            with _whole(self.path):
                source = self._source(key.split)
        with _whole(self.path):
            record = source[key.index]
            empty = sorted(name for name, value in record.items() if value is None)
            if empty:
                raise ValueError(f"record {key.index} of {key.split} has no {', '.join(empty)}")
        with self._lock:
            self._recent[place] = record
            while len(self._recent) > self._keep:
                self._recent.popitem(last=False)
        return record

    def _source(self, split: str) -> Any:
        if split not in self._sources:
            self._sources[split] = self._builder.as_data_source(
                split=split, decoders={"frames": EncodedFrames()}
            )
        return self._sources[split]


def text(value: bytes | str) -> str:
    """A Text feature as it was written."""
    return value.decode() if isinstance(value, bytes) else str(value)


def flag(value: Any) -> np.ndarray:
    """A boolean Tensor feature, which may come back as integers."""
    return np.asarray(value).astype(bool)
