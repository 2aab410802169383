"""Table 3: block sizes 1, 2, 4 and 8 of the gates, everything else the same."""

import sys
from collections.abc import Sequence
from functools import partial

from paper import networks
from paper.report import Claim, Report, curves, spread
from paper.setting import Row, Setting, command

PAPER = (
    ("block", "GMAC", "PCK"),
    ("1x1", "5.06", "95.0"),
    ("2x2", "2.43", "94.5"),
    ("4x4", "2.98", "94.9"),
    ("8x8", "4.18", "95.0"),
)
BETA = 8e-4
NOTE = (
    f"All at beta {BETA:g}; the paper's 1x1 row and the printed 2x2 row are two unstructured "
    "models trained with different betas (section 4.3)."
)


def run(setting: Setting) -> None:
    """Measures and writes everything."""
    blocks = (1, 4) if setting.quick else (1, 2, 4, 8)
    dense = networks.dense(setting)

    def row(block: int) -> Row:
        def one(seed: int) -> Row:
            return networks.skipped(setting, BETA, block=block, seed=seed)

        return networks.seeds_row(setting, one) | {"block": block}

    rows = setting.each(partial(row, block) for block in blocks)
    folder = networks.results_folder(setting)
    series = {f"{row['block']}x{row['block']}": [row] for row in rows}
    curves(series, folder / "table3.png", dense)
    lines = [
        (
            f"{row['block']}x{row['block']}",
            spread(row, "gmac", 4),
            f"{row['gate_gmac']:.4f}",
            spread(row, "pck", 2),
            spread(row, "strict", 2),
        )
        for row in rows
    ]
    Report("table3", "Table 3: structured gates",
           ("block", "GMAC", "gates", "PCK@.2", "PCK@.1"), list(lines), PAPER,
           claims(rows), [dense, *rows], (NOTE,)).write(setting)  # fmt: skip


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The orderings of Table 3."""
    if len(rows) < 2:
        return []
    pck = [row["pck"] for row in rows]
    worst = max(pck) - min(pck)
    fine, coarse = rows[0], rows[-1]
    return [
        Claim(
            "structure costs no accuracy: all block sizes lie within 0.5 PCK",
            worst <= 0.5,
            f"largest difference {worst:.2f}",
        ),
        Claim(
            "larger blocks cost more at one beta, because a block fires where any position does",
            coarse["gmac"] >= fine["gmac"],
            f"{fine['block']}: {fine['gmac']:.4f}, {coarse['block']}: {coarse['gmac']:.4f} GMAC",
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return command(__doc__ or "", "table3", run, arguments)


if __name__ == "__main__":
    sys.exit(main())
