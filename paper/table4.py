"""Table 4: clip lengths in training (4, 8) and between reference frames at test (4, 8, never)."""

import itertools
import sys
from collections.abc import Sequence
from functools import partial

from paper import networks
from paper.report import Claim, Report, curves, spread
from paper.setting import Row, Setting, command

PAPER = (
    ("T at test", "T=4: PCK", "T=4: GMAC", "T=8: PCK", "T=8: GMAC"),
    ("4", "95.3", "3.10", "94.5", "3.56"),
    ("8", "94.3", "1.91", "94.5", "2.43"),
    ("infinity", "89.3", "1.18", "94.2", "1.80"),
)
BETA = 8e-4


def run(setting: Setting) -> None:
    """Measures and writes everything."""
    lengths = (2, 3) if setting.quick else (4, 8)
    resets = (2, 4, 0) if setting.quick else (4, 8, 0)
    dense = networks.dense(setting)

    def row(length: int, reset: int) -> Row:
        def one(seed: int) -> Row:
            return networks.skipped(setting, BETA, reset, length=length, seed=seed)

        return networks.seeds_row(setting, one) | {"train": length, "test": reset}

    rows = {n: setting.each(partial(row, n, reset) for reset in resets) for n in lengths}
    folder = networks.results_folder(setting)
    curves({f"trained on T = {n}": r for n, r in rows.items()}, folder / "table4.png", dense)
    header = ("T at test", *(f"T={n}: {what}" for n in lengths for what in ("PCK", "GMAC")))
    lines = [
        (
            str(reset or "infinity"),
            *(
                spread(found[0], what, digits) if found else "-"
                for n in lengths
                for found in [[row for row in rows[n] if row["test"] == reset]]
                for what, digits in (("pck", 2), ("gmac", 4))
            ),
        )
        for reset in resets
    ]
    Report(
        "table4", "Table 4: clip lengths", header, list(lines), PAPER, _claims(rows),
        [dense, *(row for part in rows.values() for row in part)],
        (f"All at beta {BETA:g}. Test clips have {setting.test_clips[0].length} frames, which is "
         "what infinity means here (the paper's have up to 40).",),
    ).write(setting)  # fmt: skip


def _claims(rows: dict[int, list[Row]]) -> list[Claim]:
    (short, first), (long, second) = rows.items()
    found = [
        Claim(
            f"fewer reference frames cost less (trained on {n})",
            all(a["gmac"] > b["gmac"] for a, b in itertools.pairwise(part)),
            ", ".join(f"{row['gmac']:.4f}" for row in part),
        )
        for n, part in rows.items()
        if len(part) > 1
    ]
    if len(first) < 3 or len(second) < 3:
        return found
    drops = [part[1]["pck"] - part[2]["pck"] for part in (first, second)]
    found.append(
        Claim(
            f"training on T = {long} makes the gates keep their accuracy without resets, "
            f"T = {short} loses more",
            drops[1] < drops[0],
            f"PCK lost from T = {first[1]['test']} to infinity: {drops[0]:.2f} and {drops[1]:.2f}",
        )
    )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return command(__doc__ or "", "table4", run, arguments)


if __name__ == "__main__":
    sys.exit(main())
