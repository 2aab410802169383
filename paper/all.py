"""All tables and figures, one after the other; continues where it was stopped."""

import sys
from collections.abc import Sequence

from paper import figure4, figure8, figure12, figure36, table1, table3, table4, table5

EXPERIMENTS = (table1, figure8, table3, table4, figure36, figure12, table5, figure4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs them with the same options; returns the worst exit code."""
    return max(experiment.main(arguments) for experiment in EXPERIMENTS)


if __name__ == "__main__":
    sys.exit(main())
