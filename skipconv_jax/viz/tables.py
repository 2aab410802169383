"""Tables in Markdown, by tabulate: the names left, the figures right."""

from collections.abc import Sequence

from tabulate import tabulate


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, columns aligned.

    Args:
      header: names of the columns.
      rows: of as many cells; texts, which are shown as they are.
      left: this many columns are aligned to the left, the others to the right.
    """
    sides = ["left" if i < left else "right" for i in range(len(header))]
    return tabulate(rows, header, tablefmt="pipe", colalign=sides, disable_numparse=True)
