"""Boxes that a network puts beyond all bounds: cut at the frame's edges, or left out."""

import numpy as np

from skipconv_jax.tasks.detection.view import BoxView


def test_boxes_at_infinity_end_at_the_edges_and_boxes_nowhere_are_left_out():
    view = BoxView((64, 96), ("car",), min_score=0.3)
    image = np.zeros((120, 160, 3), np.uint8)
    affine = view.affine(image)
    inf, nan = np.inf, np.nan
    boxes = np.array([[-inf, -inf, inf, inf], [nan, 1, 2, 3], [8, 8, 24, inf]], np.float32)
    row = view.row((boxes, np.full(3, 0.9, np.float32), np.zeros(3, int)), affine, image.shape)
    assert row["boxes"][0] == [0, 0, 160, 120]
    assert len(row["boxes"]) == 2
    assert row["boxes"][1][3] == 120
    assert view.draw(image, row).shape == image.shape
