"""Figures 1 and 2: the residual a gate sees, where it fires, and how that narrows with depth."""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from paper import networks
from paper.figure36 import enlarged, held_out_clip
from paper.report import Claim, Report, picture
from paper.setting import Row, Setting, command
from paper.table3 import BETA
from skipconv_jax import SkipNet
from skipconv_jax.macs import Table
from skipconv_jax.ops.geometry import block_upsample
from skipconv_jax.viz import draw

PAPER = (
    ("figure", "what it shows"),
    ("1", "the input layer is computed at few locations of the residual, copied elsewhere"),
    ("2", "gates of layers 3 and 30: the deeper, the more selective"),
)


def layers(table: Table) -> list[str]:
    """The first gated layer, then a middle and the last one on the grid of the network's output."""
    rows = [
        row
        for row in table.skipped()
        if row.conv and row.conv.rank == 2 and row.calls == 1 and row.conv.window != (1, 1)
    ]
    grid = table.rows[-1].out_shape[:2]
    deep = [row.name for row in rows if row.out_shape[:2] == grid]
    # A network may have few: one layer is not shown twice.
    return list(dict.fromkeys((rows[0].name, deep[len(deep) // 3], deep[-1])))


def masks(
    setting: Setting, net: SkipNet, params: dict[str, Any], clip: np.ndarray
) -> tuple[Table, list[dict[str, np.ndarray]]]:
    """The network's table, and for every frame the `(h, w)` mask of every chosen layer."""
    table = net.table(params["model"], setting.experiment.frame())
    chosen = {row.name: row for row in table.skipped() if row.name in layers(table)}
    apply = jax.jit(net.apply)
    _, state = net.init(params["model"], setting.experiment.frame(), key=jax.random.key(0))
    found = []
    for frame in clip:
        _, state = apply(params, state, frame[None])
        found.append(
            {
                name: np.asarray(
                    block_upsample(state[name].fired, row.gate.block, row.out_shape[:2])[0]
                )
                for name, row in chosen.items()
                if row.gate
            }
        )
    return table, found


def residual(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """`|x_t - x_(t-1)|` as a picture, mid-grey where nothing changed."""
    change = now.astype(np.int16) - before.astype(np.int16)
    return np.clip(128 + change // 2, 0, 255).astype(np.uint8)


def run(setting: Setting) -> None:
    """Draws and writes everything."""
    clip = held_out_clip(setting, 8)
    net, params = networks.gated_network(setting, beta=BETA)
    table, found = masks(setting, net, params, clip)
    names = layers(table)
    pictures = []
    for t in (1, 5):
        pictures.append(draw.caption(enlarged(clip[t]), f"frame {t + 1}"))
        pictures.append(draw.caption(enlarged(residual(clip[t - 1], clip[t])), "residual"))
        for name in names:
            image = draw.overlay_firing(enlarged(clip[t]), found[t][name])
            pictures.append(draw.caption(image, f"{name} {100 * found[t][name].mean():.1f} %"))
    sheet = draw.contact_sheet(pictures, columns=2 + len(names))
    picture(networks.results_folder(setting) / "figure12.png", sheet)
    shares = {n: float(np.mean([frame[n].mean() for frame in found[1:]])) for n in names}
    changed = np.mean(np.any(clip[1:] != clip[:-1], axis=-1))
    rows: list[Row] = [{"layer": name, "firing": share} for name, share in shares.items()]
    order = [row.name for row in table.skipped()]
    lines = [
        (name, f"{order.index(name) + 1} of {len(order)}", f"{100 * share:.1f} %")
        for name, share in shares.items()
    ]
    first, *_, last = shares.values()
    claims = [
        Claim(
            "the input layer is computed at few locations",
            first < 0.5,
            f"{100 * first:.1f} % of its positions fire; {100 * changed:.1f} % of pixels change",
        ),
        Claim(
            "gates are more selective in deeper layers",
            last < first,
            f"{100 * first:.1f} % in the first, {100 * last:.1f} % in the last one",
        ),
    ]
    note = (
        "One test clip, frames 2 to 8; pictures show frames 2 and 6. Red: computed; the rest is "
        "copied from the frame before. The paper's Figure 2 shows a detector."
    )
    Report("figure12", "Figures 1 and 2: residuals and masks", ("layer", "place", "firing"),
           list(lines), PAPER, claims, rows, (note,)).write(setting)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return command(__doc__ or "", "figure12", run, arguments)


if __name__ == "__main__":
    sys.exit(main())
