"""Figures 3 and 6: masks under several block sizes, and predictions with the cost per frame."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import cv2
import jax
import numpy as np

from paper import networks
from paper.report import Claim, Report, picture
from paper.setting import Row, Setting, command
from paper.table3 import BETA
from skipconv_jax import SkipNet, macs, skip
from skipconv_jax.streaming.runner import make_streamer
from skipconv_jax.viz import draw

PAPER = (
    ("figure", "what it shows"),
    ("3", "masks of gates trained with blocks: coarser, on the moving person"),
    ("6", "HRNet and HRNet + Skip-Conv predict alike; GMAC per frame is a fraction"),
)
_ZOOM = 2


def held_out_clip(setting: Setting, frames: int) -> np.ndarray:
    """The first test clip, as the network sees it: `(T, H, W, 3)` uint8."""
    batch = next(iter(networks.held_out_batches(setting, frames)))
    return np.asarray(batch["frames"][0])


def _stream(
    setting: Setting, net: SkipNet, params: dict[str, Any], clip: np.ndarray, cells: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Joints `(T, 15, 2)`, GMAC `(T,)`, and where work was done `(T, h, w)` (None if all dense)."""
    experiment = setting.experiment
    table = net.table(params["model"], experiment.frame())
    size = (experiment.size[0] // cells, experiment.size[1] // cells)
    places = size if table.skipped() else None
    streamer = make_streamer(net, table, lambda out: experiment.task.predict(out)[0], places)
    _, state = net.init(params["model"], experiment.frame(), key=jax.random.key(0))
    _, reading = streamer(params, state, clip[:, None])
    where = None if reading.places is None else np.asarray(reading.places[:, 0])
    gmac = np.asarray(reading.macs[:, 0], np.float64) / macs.GIGA
    return np.asarray(reading.outputs)[:, 0], gmac, where


def enlarged(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=_ZOOM, fy=_ZOOM, interpolation=cv2.INTER_LINEAR)


def masks(setting: Setting) -> list[Row]:
    """Figure 3: one frame's map of computed places for every block size."""
    clip = held_out_clip(setting, 8)
    shown = (1, 3, 5)
    pictures, rows = [], []
    blocks = (1, 4) if setting.quick else (1, 2, 4, 8)

    def trained(block: int) -> tuple[int, SkipNet, dict[str, Any]]:
        return block, *networks.gated_network(setting, beta=BETA, block=block)

    for block, net, params in setting.each(partial(trained, block) for block in blocks):
        _, gmac, where = _stream(setting, net, params, clip, 4)
        rows.append({"figure": 3, "block": block, "gmac": gmac.tolist()})
        for t in shown:
            share = np.zeros((1, 1)) if where is None else where[t]
            image = draw.overlay_firing(enlarged(clip[t]), share)
            text = f"{block}x{block}  frame {t + 1}  {gmac[t]:.4f} GMAC"
            pictures.append(draw.caption(image, text))
    if not rows:
        setting.check_computes("figure36")
    sheet = draw.contact_sheet(pictures, columns=len(shown))
    picture(networks.results_folder(setting) / "figure36-masks.png", sheet)
    return rows


def predictions(setting: Setting) -> list[Row]:
    """Figure 6: dense above, skipped below, GMAC of every frame."""
    clip = held_out_clip(setting, 8)
    dense = skip(setting.experiment.predict, [("*", None)])
    runs = {
        "HRNet": (dense, {"model": networks.dense_network(setting), "gates": {}}),
        "+ Skip-Conv": networks.gated_network(setting, beta=BETA),
    }
    shown = (0, 2, 4, 6)
    pictures, rows = [], []
    for name, (net, params) in runs.items():
        joints, gmac, _ = _stream(setting, net, params, clip, 4)
        rows.append(
            {"figure": 6, "network": name, "gmac": gmac.tolist(), "joints": joints.tolist()}
        )
        for t in shown:
            image = draw.draw_pose(enlarged(clip[t]), joints[t] * _ZOOM)
            pictures.append(draw.caption(image, f"{name}  {gmac[t]:.4f} GMAC"))
    sheet = draw.contact_sheet(pictures, columns=len(shown))
    picture(networks.results_folder(setting) / "figure36-predictions.png", sheet)
    return rows


def run(setting: Setting) -> None:
    """Draws and writes everything."""
    mask_rows, pose_rows = masks(setting), predictions(setting)
    dense, ours = pose_rows
    apart = np.linalg.norm(np.array(dense["joints"]) - np.array(ours["joints"]), axis=-1)
    between = [np.mean(row["gmac"][1:]) for row in (dense, ours)]
    lines = [
        (f"3, blocks of {row['block']}", f"{row['gmac'][0]:.4f}", f"{np.mean(row['gmac'][1:]):.4f}")
        for row in mask_rows
    ] + [
        (f"6, {row['network']}", f"{row['gmac'][0]:.4f}", f"{np.mean(row['gmac'][1:]):.4f}")
        for row in pose_rows
    ]
    found = [
        Claim(
            "frames after the reference frame cost a fraction of it",
            between[1] < 0.5 * between[0],
            f"{between[1]:.4f} against {between[0]:.4f} GMAC",
        ),
        Claim(
            "the predictions differ little (median joint within 2 % of the frame)",
            float(np.median(apart)) <= 0.02 * setting.experiment.size[0],
            f"median {np.median(apart):.2f} of {setting.experiment.size[0]} pixels",
        ),
    ]
    header = ("figure", "GMAC, reference frame", "GMAC, other frames")
    Report("figure36", "Figures 3 and 6: where, and what it costs", header, list(lines), PAPER,
           found, mask_rows + pose_rows, ("One test clip, its first 8 frames.",)
           ).write(setting)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return command(__doc__ or "", "figure36", run, arguments)


if __name__ == "__main__":
    sys.exit(main())
