"""Clips, networks and scores that the policy, warp and calibration tables share."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax import config as configs
from skipconv_jax import whole_files
from skipconv_jax.commands.calibrate import first_frames, judge
from skipconv_jax.commands.common import load_weights
from skipconv_jax.streaming.sources import Source
from skipconv_jax.tasks import Experiment, build


class Clip(NamedTuple):
    """Frames of B streams and, where there are any, their labels, arrays `(T, B, ...)`."""

    frames: np.ndarray
    labels: dict[str, np.ndarray] | None


def arguments(description: str) -> argparse.ArgumentParser:
    """Flags every table has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", default="configs/hrnet_synthetic.py")
    parser.add_argument("--checkpoint", required=True, help="folder of a training phase")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    return parser


def network(config: str, checkpoint: str, data: Path | None = None) -> tuple[Experiment, Any]:
    """The experiment, on its own or other data, and its trained variables."""
    settings = configs.load(config)
    if data is not None:
        settings.data.root = str(data)
    experiment = build(settings)
    return experiment, load_weights(experiment, checkpoint)[1]["model"]


def labelled(experiment: Experiment, part: str, frames: int, streams: int, skip: int = 0) -> Clip:
    """The first frames of `streams` clips of the experiment's data, after `skip` others."""
    found = first_frames(experiment, part, frames, streams, skip)
    return Clip(found.images, found.labels)


def video(path: str | Path, size: tuple[int, int], frames: int, start: int = 0) -> Clip:
    """The middle of a video in the shape of the network's input, scaled to it; no labels."""
    images = []
    for frame in Source(path):
        image = frame.image
        if frame.index < start or image is None:
            continue
        scale = min(n / m for n, m in zip(image.shape[:2], size, strict=True))
        cut = [min(n, round(scale * m)) for n, m in zip(image.shape[:2], size, strict=True)]
        top, left = ((n - m) // 2 for n, m in zip(image.shape[:2], cut, strict=True))
        middle = image[top : top + cut[0], left : left + cut[1]]
        images.append(cv2.resize(middle, size[::-1], interpolation=cv2.INTER_AREA))
        if len(images) == frames:
            break
    return Clip(np.stack(images)[:, None], None)


def left_dense(experiment: Experiment) -> list[tuple[str, None]]:
    """Rules for the convolutions that the config leaves dense."""
    return [(pattern, None) for pattern, gate in experiment.config.skip.rules if gate is None]


def headline(experiment: Experiment) -> str:
    """The name of the figure that `quality` gives."""
    return experiment.figures[-1][1]


def quality(
    experiment: Experiment,
    seen: Any,
    dense: Any,
    labels: Mapping[str, np.ndarray] | None,
) -> float:
    """Headline figure of what was read off frames `(T, B, ...)`.

    Against labels, or without them against what the dense network says.
    """
    return judge(experiment, seen, experiment.answers(dense) if labels is None else labels)


def squares(tree: Any) -> jax.Array:
    """Sum of squares over all leaves, per stream `(B,)`."""
    parts = [jnp.square(a.astype(jnp.float32)).reshape(len(a), -1) for a in jax.tree.leaves(tree)]
    return jnp.stack([part.sum(axis=1) for part in parts]).sum(axis=0)


def relative(error: np.ndarray, size: np.ndarray) -> float:
    """||y~ - y|| / ||y|| from sums of squares."""
    return float(np.sqrt(error.sum() / max(size.sum(), 1e-12)))


def save(out: Path, name: str, text: str, data: Any) -> None:
    """Prints a table and writes it with its figures."""
    out.mkdir(parents=True, exist_ok=True)
    whole_files.write_text(out / f"{name}.md", text + "\n")
    whole_files.write_text(out / f"{name}.json", json.dumps(data, indent=1) + "\n")
    print(text)
