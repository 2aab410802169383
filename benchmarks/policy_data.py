"""Clips, networks and scores that the policy, warp and calibration tables share."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np

from skipconv_jax import config as configs
from skipconv_jax.commands.common import load_weights
from skipconv_jax.data.jhmdb_folder import JhmdbFolder
from skipconv_jax.data.pipeline import make_eval_iterator
from skipconv_jax.experiment import Experiment, build
from skipconv_jax.tasks.pose import Pck
from skipconv_jax.video import Source


class Clip(NamedTuple):
    """Frames of B streams and, where there are any, their labels, arrays `(T, B, ...)`."""

    frames: np.ndarray
    labels: dict[str, np.ndarray] | None

    def part(self, start: int, stop: int) -> "Clip":
        """Frames `start` to `stop`."""
        labels = self.labels
        cut = None if labels is None else {k: v[start:stop] for k, v in labels.items()}
        return Clip(self.frames[start:stop], cut)


def arguments(description: str) -> argparse.ArgumentParser:
    """Flags every table has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", default="configs/hrnet_synthetic.py")
    parser.add_argument("--checkpoint", required=True, help="folder of a training phase")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    return parser


def network(config: str, checkpoint: str) -> tuple[Experiment, Any]:
    """The experiment and its trained variables."""
    experiment = build(configs.load(config))
    return experiment, load_weights(experiment, checkpoint)[1]["model"]


def labelled(
    experiment: Experiment, root: str | Path, frames: int, streams: int, first: int = 0
) -> Clip:
    """`streams` clips of a JHMDB-like folder, from the `first` in order of name, cropped."""
    folder = JhmdbFolder(Path(root))
    names = folder.names()[first : first + streams]
    if len(names) < streams:
        raise ValueError(f"`root` (={root}) must hold {first + streams} clips.")
    clips, _ = folder.clips(names)
    pieces = make_eval_iterator(
        clips,
        batch=1,
        length=frames,
        size=experiment.size,
        margin=experiment.config.data.margin,
        normalized=False,
    )
    found: dict[int, dict[str, np.ndarray]] = {}
    for piece in pieces:
        found.setdefault(int(piece["clip"][0, 0]), jax.tree.map(lambda a: np.asarray(a[0]), piece))
    kept = [found[i] for i in sorted(found) if i >= 0]
    stacked = {key: np.stack([k[key] for k in kept], axis=1) for key in kept[0]}
    return Clip(stacked.pop("frames"), stacked)


def video(path: str | Path, size: tuple[int, int], frames: int, start: int = 0) -> Clip:
    """The middle square of a video, scaled to the network's input; no labels."""
    images = []
    for frame in Source(path):
        image = frame.image
        if frame.index < start or image is None:
            continue
        side = min(image.shape[:2])
        top, left = ((n - side) // 2 for n in image.shape[:2])
        square = image[top : top + side, left : left + side]
        images.append(cv2.resize(square, size[::-1], interpolation=cv2.INTER_AREA))
        if len(images) == frames:
            break
    return Clip(np.stack(images)[:, None], None)


def pck_score(experiment: Experiment, clip: Clip) -> Callable[[Any, Any], float]:
    """PCK@.2 over the clip's labels of heatmaps `(T, B, h, w, J)`."""
    labels = clip.labels
    if labels is None:
        raise ValueError("`clip` must have labels.")

    def score(outputs: Any, dense: Any) -> float:
        del dense
        pck = Pck()
        joints = np.asarray(experiment.task.predict(outputs)[0])
        counted = labels["visible"] & labels["valid"][..., None]
        pck.update(joints, labels["joints"], labels["size"], counted, labels["scale"])
        return pck.result()["mean15"]

    return score


def agreement_score(experiment: Experiment, share: float = 0.05) -> Callable[[Any, Any], float]:
    """Share of joints within 5 % of the frame's longer side of the dense network's joints."""

    def score(outputs: Any, dense: Any) -> float:
        ours, theirs = (np.asarray(experiment.task.predict(y)[0]) for y in (outputs, dense))
        distance = np.linalg.norm(ours - theirs, axis=-1)
        return float((distance <= share * max(experiment.size)).mean())

    return score


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def save(out: Path, name: str, text: str, data: Any) -> None:
    """Prints a table and writes it with its figures."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    (out / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(text)
