"""A compressed network that skips as well: the cyan line of Figure 5, one point of it.

    python -m paper.combined --method spatial --target 0.5 --beta 8e-4

prints the dense network, the compressed one, and the two together. Methods: `spatial` and `weight`
(SVD, `--target` is the share of the dense cost) and `l0` (`--target` is the penalty's weight).
Trainings and rows are those of Table 1, in the same `--workdir`.
"""

import sys
from collections.abc import Sequence

from paper import networks
from paper.setting import Row, Setting, guarded, parser, setting
from paper.table3 import BETA
from skipconv_jax.viz.tables import markdown

METHODS = ("spatial", "weight", "l0")


def measure(where: Setting, method: str, target: float, beta: float) -> dict[str, Row]:
    """Rows of the dense, the compressed and the combined network."""
    if method != "l0" and not 0 < target < 1:
        # Refused before anything is trained.
        raise ValueError(f"`target` (={target}) must lie between 0 and 1, a share of the cost.")
    if method == "l0":
        alone = networks.l0(where, target)
        both = networks.l0_skipped(where, target, beta)
    else:
        alone = networks.svd(where, method, target)
        both = networks.svd_skipped(where, target, beta, method)
    return {"dense": networks.dense(where), method: alone, f"{method} + Skip-Conv": both}


def show(rows: dict[str, Row]) -> None:
    """Prints the rows."""
    first = rows["dense"]["gmac"]
    lines = [
        (
            name,
            f"{row['gmac']:.4f}",
            f"{row['gate_gmac']:.4f}",
            f"{first / (row['gmac'] + row['gate_gmac']):.2f}x",
            f"{row['pck']:.2f}",
        )
        for name, row in rows.items()
    ]
    print(markdown(("network", "GMAC", "gates", "reduction", "PCK@.2"), lines))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    made = parser(__doc__ or "", "combined")
    made.add_argument("--method", choices=METHODS, default="spatial")
    made.add_argument("--target", type=float, default=0.5)
    made.add_argument("--beta", type=float, default=BETA)
    options = made.parse_args(arguments)

    def run(where: Setting) -> None:
        show(measure(where, options.method, options.target, options.beta))

    return guarded(run, setting(options))


if __name__ == "__main__":
    sys.exit(main())
