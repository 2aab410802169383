"""Means over the splits of a data set, which is what papers report."""

from collections.abc import Mapping

import numpy as np


def over_splits(results: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Rows of a table: one per split and their mean, which is what the paper reports.

    Args:
      results: number of the split to `Pck.result()` or any figures with the same keys.

    Returns:
      `{'split 1': ..., ..., 'mean': ...}`.

    Raises:
      ValueError: no results, or their keys differ.
    """
    if not results:
        raise ValueError("`results` (={}) must hold at least one split.")
    keys = {tuple(result) for result in results.values()}
    if len(keys) != 1:
        raise ValueError("`results` must have the same figures for every split.")
    rows = {f"split {number}": dict(results[number]) for number in sorted(results)}
    mean = {key: float(np.mean([result[key] for result in results.values()])) for key in keys.pop()}
    return {**rows, "mean": mean}
