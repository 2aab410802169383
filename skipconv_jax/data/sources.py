"""Opens clips and videos by what lies at a path: original folders, records, or a COCO JSON."""

from collections.abc import Sequence
from pathlib import Path

from skipconv_jax.data.clips import PoseClip
from skipconv_jax.data.coco_folder import CocoVideos, read_pose_clips
from skipconv_jax.data.jhmdb_folder import JhmdbFolder
from skipconv_jax.data.labelled_videos import VideoSource
from skipconv_jax.data.ua_detrac_folder import DetracFolder, FolderVideos


def _prepared(root: Path, dataset: str, preferred: Sequence[str]) -> str | None:
    """Config of the dataset prepared in `root`, the first of `preferred` that is there."""
    found = [c for c in preferred if any((root / dataset / c).glob("*/metadata.json"))]
    return found[0] if found else None


def open_clips(
    root: Path | str, part: str, split: int = 1, subset: str = "full"
) -> Sequence[PoseClip]:
    """Clips for the pose task, sorted by name.

    Args:
      root: a folder in JHMDB's layout, a `data_dir` of `data.prepare`, or a COCO-style JSON file
        beside its frames (all its clips, whatever `part`, `split` and `subset` say).
      part: `train` or `test`.
      split: 1 to 3.
      subset: `full` or `sub`.

    Raises:
      ValueError: there is no such data at `root`, or clips of the split are missing or damaged.
    """
    root = Path(root)
    if root.suffix == ".json":
        return read_pose_clips(root.parent, root)
    config = _prepared(root, "jhmdb", (subset, "synthetic"))
    if config is not None:
        # TFDS takes a second to import: only where it is needed.
        from skipconv_jax.data import jhmdb

        return jhmdb.load(root, part, split, config)
    folder = JhmdbFolder(root)
    clips, damaged = folder.clips(folder.split(part, split, subset))
    if damaged:
        raise ValueError(
            f"`root` (={str(root)!r}) must hold whole clips; {len(damaged)} of "
            f"{len(damaged) + len(clips)} are missing or damaged, first: {damaged[0]} "
            "`python -m skipconv_jax.data.prepare jhmdb --manual_dir ... --partial` lists them all "
            "and goes on without them."
        )
    return clips


def open_videos(root: Path | str, part: str) -> VideoSource:
    """Videos for the detection task.

    Args:
      root: a folder in UA-DETRAC's layout, a `data_dir` of `data.prepare`, or a COCO-style JSON
        file beside its frames (all its videos, whatever `part` says).
      part: `train` or `test`.

    Raises:
      ValueError: there is no such data at `root`, or sequences are missing or damaged.
    """
    root = Path(root)
    if root.suffix == ".json":
        return CocoVideos(root.parent, root)
    config = _prepared(root, "ua_detrac", ("detrac", "synthetic"))
    if config is not None:
        from skipconv_jax.data import ua_detrac

        return ua_detrac.load(root, part, config)
    videos = FolderVideos(DetracFolder(root), part)
    if videos.damaged:
        raise ValueError(
            f"`root` (={str(root)!r}) must hold whole sequences; {len(videos.damaged)} are not, "
            f"first: {videos.damaged[0]} `python -m skipconv_jax.data.prepare ua_detrac "
            "--manual_dir ... --partial` lists them all and goes on without them."
        )
    return videos
