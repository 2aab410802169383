"""Missed frames and switches of identity are counted as the page says."""

import numpy as np

from benchmarks.tracks import compared, nth, overlap


def _box(x):
    return np.array([x, 0.0, x + 10, 10])


def test_overlaps_are_those_of_boxes():
    np.testing.assert_allclose(
        overlap(np.stack([_box(0)]), np.stack([_box(0), _box(5), _box(20)])), [[1, 1 / 3, 0]]
    )


def test_missed_frames_and_switches():
    truth = [[(1, _box(0)), (2, _box(50))] for _ in range(4)]
    assert compared(truth, truth) == (8, 0, 0)
    found = [
        [(7, _box(1)), (8, _box(50))],
        [(7, _box(1))],  # one is missed
        [(8, _box(1)), (7, _box(50))],  # both have changed their numbers
        [(8, _box(8)), (7, _box(50))],  # one is too far off
    ]
    assert compared(truth, found) == (8, 2, 2)


def test_every_nth_row_is_repeated():
    assert nth([{"n": n} for n in range(5)], 2) == [{"n": n} for n in (0, 0, 2, 2, 4)]
