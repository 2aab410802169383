"""Charts are written, and the rows behind them stay few however long the stream."""

import numpy as np
import pytest

from skipconv_jax.viz.charts import Bins, stage_chart, stream_chart


def _row(frame, **more):
    return {"frame": frame, "gmac": float(frame), "ms": 1.0, "firing": {"stem": 0.5}, **more}


def test_bins_keep_means_in_constant_memory():
    bins = Bins(most=4)
    for frame in range(1000):
        bins.add(_row(frame, **({"reset": "cut"} if frame == 500 else {})))
        assert len(bins.rows()) <= 9
    rows = bins.rows()
    assert rows[0]["frame"] == 0
    sizes = np.diff([row["frame"] for row in rows] + [1000])
    total = sum(row["gmac"] * size for row, size in zip(rows, sizes, strict=True))
    assert total == pytest.approx(sum(range(1000)))
    assert sum(row["reset"] for row in rows) == 1


def test_charts_are_png_files(tmp_path):
    stream_chart([_row(i) for i in range(5)], 10.0, tmp_path / "chart.png")
    stage_chart({"stem": 1.0, "stage2": 0.0}, tmp_path / "stages.png", "title")
    for name in ("chart.png", "stages.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
