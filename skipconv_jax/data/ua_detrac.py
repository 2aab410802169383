"""UA-DETRAC as a TFDS dataset, written and read without TensorFlow: one record per 16 frames.

    python -m skipconv_jax.data.prepare ua_detrac --manual_dir DETRAC --data_dir data/tfds

A record is a segment of a sequence: any clip of T frames is read from one or two small records.
Configs: `detrac` (60 sequences to train, 40 to test) and `synthetic` (the twin).
"""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from skipconv_jax.data import records
from skipconv_jax.data.labelled_videos import BoxTrack, VideoWindow, make_track
from skipconv_jax.data.ua_detrac_folder import PARTS, VEHICLES, DetracFolder
from skipconv_jax.extras import required

with required():
    import tensorflow_datasets as tfds

SEGMENT = 16
"""Frames of a record: about 1.5 MB of JPEG."""

_INSTRUCTIONS = """\
From the UA-DETRAC site fetch the train and test images and XML annotations, unpack
Insight-MVT_Annotation_Train, Insight-MVT_Annotation_Test, DETRAC-Train-Annotations-XML and
DETRAC-Test-Annotations-XML into one folder and pass it as manual_dir. Without the data,
`python -m skipconv_jax.data.synthetic_traffic --out DIR` writes a synthetic set of the same layout.
"""


class UaDetrac(tfds.core.GeneratorBasedBuilder):
    """UA-DETRAC: traffic videos with boxes of cars, buses, vans and other vehicles.

    Args:
      leave_out: names of sequences not to write; `data.prepare` passes the damaged ones.
      on_item: called with the name of each one that was written.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "One record per 16 frames, as distributed."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = _INSTRUCTIONS
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="detrac", description="The 60/40 lists."),
        tfds.core.BuilderConfig(name="synthetic", description="The twin."),
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
        feature = tfds.features
        box = feature.Tensor(shape=(None, 4), dtype=np.float32)
        row = feature.Tensor(shape=(None,), dtype=np.int32)
        return records.dataset_info(
            self,
            "Traffic videos from fixed cameras with boxes of vehicles in every frame.",
            {
                "name": feature.Text(),
                "start": feature.Scalar(dtype=np.int32),
                "frames": feature.Sequence(
                    feature.Image(shape=(None, None, 3), encoding_format="jpeg")
                ),
                "boxes": box,
                "labels": row,
                "ids": row,
                "counts": row,
                "annotated": feature.Tensor(shape=(None,), dtype=np.bool_),
                "ignored": box,
                "size": feature.Tensor(shape=(2,), dtype=np.int32),
                "weather": feature.Text(),
                "camera": feature.Text(),
            },
            homepage="https://detrac-db.rit.albany.edu",
            citation="Wen et al., UA-DETRAC: A new benchmark, CVIU 2020",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        source = DetracFolder(Path(dl_manager.manual_dir))
        generators = {}
        for part in PARTS:
            names = [n for n in source.names(part) if n not in self._leave_out]
            if names:
                generators[part] = self._generate_examples(source, part, names)
        if not generators:
            raise ValueError(f"No sequence of {source.root} is left to write; see the report.")
        return generators

    def _generate_examples(
        self, source: DetracFolder, part: str, names: list[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        entries = self.info.metadata["records"].setdefault(part, [])
        self.info.metadata["classes"] = list(VEHICLES)
        for name in names:
            sequence = source.sequence(part, name)
            for start in range(0, len(sequence.paths), SEGMENT):
                times = range(start, min(start + SEGMENT, len(sequence.paths)))
                track = sequence.track.take(times)
                entries.append([name, start, len(times)])
                yield (
                    len(entries) - 1,
                    {
                        "name": name,
                        "start": start,
                        "frames": [sequence.paths[t].read_bytes() for t in times],
                        "boxes": track.boxes,
                        "labels": track.labels,
                        "ids": track.ids,
                        "counts": track.counts,
                        "annotated": track.annotated,
                        "ignored": sequence.ignored,
                        "size": np.array([sequence.height, sequence.width], np.int32),
                        "weather": sequence.attributes.get("sence_weather", ""),
                        "camera": sequence.attributes.get("camera_state", ""),
                    },
                )
            self._on_item(name)


def _track(record: records.Record) -> BoxTrack:
    return BoxTrack(
        boxes=np.asarray(record["boxes"], np.float32).reshape(-1, 4),
        labels=np.asarray(record["labels"], np.int32),
        ids=np.asarray(record["ids"], np.int32),
        counts=np.asarray(record["counts"], np.int32),
        annotated=records.flag(record["annotated"]),
    )


class RecordVideos:
    """Sequences of a prepared dataset; a window is read from the records that hold it."""

    def __init__(self, source: records.Records, part: str) -> None:
        self._source = source
        self._videos: dict[str, list[records.RecordKey]] = {}
        for key in source.catalogue():
            if len(key.entry) != 3:
                raise records.DamagedRecordsError(
                    f"{source.path}: `records` must list a name, a start and a count of frames, "
                    f"not {key.entry!r}."
                )
            if key.split == part:
                self._videos.setdefault(str(key.entry[0]), []).append(key)
        self.classes = tuple(source.metadata.classes)

    @functools.cached_property
    def names(self) -> list[str]:
        """Of the sequences."""
        return list(self._videos)

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Frames of each sequence."""
        return [sum(int(key.entry[2]) for key in keys) for keys in self._videos.values()]

    def read(self, video: int, times: Sequence[int]) -> VideoWindow:
        """Frames of one sequence."""
        keys = self._videos[self.names[video]]
        needed = {t // SEGMENT: self._source.read(keys[t // SEGMENT]) for t in times}
        tracks = {segment: _track(record) for segment, record in needed.items()}
        frames = [tracks[t // SEGMENT].take([t % SEGMENT]) for t in times]
        return VideoWindow(
            encoded=[needed[t // SEGMENT]["frames"][t % SEGMENT] for t in times],
            track=make_track(
                [(f.boxes, f.labels, f.ids) if f.annotated[0] else None for f in frames]
            ),
            ignored=np.asarray(next(iter(needed.values()))["ignored"], np.float32).reshape(-1, 4),
        )


def load(data_dir: Path | str, part: str, config: str = "detrac") -> RecordVideos:
    """Sequences of one part of a prepared dataset.

    Args:
      data_dir: folder the dataset was prepared in.
      part: `train` or `test`.
      config: `detrac` or `synthetic`.

    Raises:
      ValueError: an argument is unknown, or the dataset was not prepared.
    """
    if part not in PARTS:
        raise ValueError(f"`part` (={part!r}) must be one of {PARTS}.")
    source = records.Records(records.folder(data_dir, "ua_detrac", config), keep=32)
    return RecordVideos(source, part)
