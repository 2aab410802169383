"""Ignored pixels are those of the reference frame to the bit; zones are where boxes stand."""

import numpy as np
import pytest

from skipconv_jax.live.changes import Changes
from skipconv_jax.live.regions import Ignore, Zones
from skipconv_jax.tasks.given.view import PlacedBoxes

HALF = [[(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)]]


def _input(view, image):
    affine = view.affine(image)
    return view.inputs([image], affine), affine


@pytest.mark.parametrize("shape", [(48, 64, 3), (45, 101, 3), (200, 310, 3)])
@pytest.mark.parametrize("stretch", [True, False])
def test_what_changes_inside_changes_no_pixel_of_the_input(shape, stretch):
    view = PlacedBoxes((32, 40), ("a",), 0.0, stretch, (114, 114, 114))
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, shape, np.uint8)
    ignore = Ignore(HALF)
    x, affine = _input(view, first)
    np.testing.assert_array_equal(ignore(x, affine, shape, True), x)
    second = first.copy()
    second[:, : shape[1] // 2] = rng.integers(0, 256, (shape[0], shape[1] // 2, 3), np.uint8)
    changed, _ = _input(view, second)
    assert (changed != x).mean() > 0.2
    np.testing.assert_array_equal(ignore(changed, affine, shape, False), x)
    # What changes outside is seen, but for the pixels that mix both.
    third = rng.integers(0, 256, shape, np.uint8)
    outside, _ = _input(view, third)
    got = ignore(outside, affine, shape, False)
    column = int(np.ceil(affine[0] @ (shape[1] / 2, 0, 1))) + 2
    np.testing.assert_array_equal(got[:, :, column:], outside[:, :, column:])
    # A reference frame brings the pixels inside up to date.
    np.testing.assert_array_equal(ignore(outside, affine, shape, True), outside)
    np.testing.assert_array_equal(ignore(outside, affine, shape, False), outside)


def test_another_size_of_the_frame_makes_another_mask():
    view = PlacedBoxes((32, 40), ("a",), 0.0, True, (0, 0, 0))
    ignore = Ignore(HALF)
    for shape in ((48, 64, 3), (24, 32, 3)):
        x, affine = _input(view, np.full(shape, shape[0], np.uint8))
        np.testing.assert_array_equal(ignore(x, affine, shape, False), x)


def test_boxes_stand_where_the_middle_of_their_lower_edge_is():
    zones = Zones({"left": HALF[0], "bottom": [(0, 0.5), (1, 0.5), (1, 1), (0, 1)]})
    boxes = [(0, 0, 20, 20), (10, 10, 30, 90), (60, 60, 90, 95), (45, 0, 95, 10)]
    assert zones.of(boxes, (100, 100, 3)) == [["left"], ["left", "bottom"], ["bottom"], []]


def test_change_is_a_share_and_a_cut_is_a_cut():
    rng = np.random.default_rng(0)
    day = np.clip(rng.normal(170, 20, (36, 64, 3)), 0, 255).astype(np.uint8)
    changes = Changes()
    assert changes.look(day) == (None, False)
    changes.ran(day)
    assert changes.look(day) == (0.0, False)
    moved = day.copy()
    moved[:9] = 255 - moved[:9]
    assert changes.look(moved) == (pytest.approx(0.25, abs=0.03), False)
    night = np.clip(rng.normal(40, 10, (36, 64, 3)), 0, 255).astype(np.uint8)
    change, cut = changes.look(night)
    assert cut
    assert change > 0.9
    # A camera that pans changes everything but the colours.
    change, cut = changes.look(np.ascontiguousarray(day[::-1, ::-1]))
    assert change > 0.5
    assert not cut
    assert changes.look(None) == (None, False)
