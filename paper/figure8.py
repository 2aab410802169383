"""Figure 8: share of positions that fire per stage, for four betas."""

import itertools
import sys
from collections.abc import Sequence
from functools import partial

from paper import networks
from paper.report import Claim, Report, grouped_bars
from paper.setting import Setting, command
from paper.table1 import BETAS

PAPER = (
    ("beta", "PCK", "firing"),
    ("1e-5", "95", "more than half of all positions skipped"),
    ("5e-5", "94", "below 0.2 overall"),
    ("10e-5", "93", "below 0.1 in some later stages"),
    ("15e-5", "91", "0.8 % to 2.1 %, stage 2 at zero"),
)


def run(setting: Setting) -> None:
    """Measures and writes everything."""
    betas = BETAS[1:3] if setting.quick else BETAS
    rows = setting.each(partial(networks.skipped, setting, beta) for beta in betas)
    if not rows:
        setting.check_computes("skip")
    groups = {
        f"beta {row['beta']:g} ({row['pck']:.1f} PCK)": {
            stage: _after_reference(share, setting) for stage, share in row["firing"].items()
        }
        for row in rows
    }
    folder = networks.results_folder(setting)
    grouped_bars(groups, folder / "figure8.png", "firing between reference frames")
    stages = list(rows[0]["firing"])
    lines = [
        (f"{row['beta']:g}", f"{row['pck']:.2f}", *(f"{100 * v:.1f} %" for v in shares.values()))
        for row, shares in zip(rows, groups.values(), strict=True)
    ]
    overall = [row["gmac"] for row in rows]
    late = stages[-2]
    shares = [list(group.values()) for group in groups.values()]
    found = [
        Claim(
            "a larger beta fires less",
            all(a > b for a, b in itertools.pairwise(overall)),
            ", ".join(f"{g:.4f} GMAC" for g in overall),
        ),
        Claim(
            "late stages fire less than the stem",
            all(share[-2] < share[0] for share in shares),
            f"{late} against {stages[0]}: "
            + ", ".join(f"{100 * s[-2]:.1f} / {100 * s[0]:.1f} %" for s in shares),
        ),
    ]
    header = ("beta", "PCK", *stages)
    notes = (
        "Shares of a stage's multiply-accumulates spent on frames that are no reference frames. "
        "Betas are not those of the paper: heatmap losses differ in scale.",
    )
    Report("figure8", "Figure 8: firing per stage", header, list(lines), PAPER, found, rows,
           notes).write(setting)  # fmt: skip


def _after_reference(share: float, setting: Setting) -> float:
    """Mean share c of the other frames, from the mean (1 + (T - 1) c) / T over all of them."""
    length = min(setting.config.eval.reset_every, setting.test_clips[0].length)
    return max((share * length - 1) / (length - 1), 0.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return command(__doc__ or "", "figure8", run, arguments)


if __name__ == "__main__":
    sys.exit(main())
