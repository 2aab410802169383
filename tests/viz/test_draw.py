"""Drawing on frames: what is drawn, where, and that the frame itself is not changed."""

import numpy as np
import pytest

from skipconv_jax.viz import draw


def _frame(height=60, width=80):
    return np.full((height, width, 3), 100, np.uint8)


def _joints():
    rng = np.random.default_rng(0)
    return rng.uniform(10, 50, (15, 2))


def test_pose_is_drawn_on_a_copy():
    image = _frame()
    out = draw.draw_pose(image, _joints())
    assert (image == 100).all()
    x, y = np.rint(_joints()[14]).astype(int)
    assert (out[y, x] != 100).any()


def test_joints_without_confidence_or_place_are_left_out():
    joints = _joints()
    joints[3] = np.nan
    out = draw.draw_pose(_frame(), joints, np.zeros(15), minimum=0.1)
    assert (out == 100).all()
    assert (draw.draw_pose(_frame(), joints) != 100).any()


def test_firing_tints_whole_blocks_only():
    firing = np.zeros((2, 4))
    firing[0, 1] = 1.0
    out = draw.overlay_firing(_frame(), firing)
    tinted = (out != 100).any(axis=-1)
    expected = np.zeros((60, 80), bool)
    expected[:30, 20:40] = True
    np.testing.assert_array_equal(tinted, expected)


def test_caption_stays_in_its_corner():
    out = draw.caption(_frame(200, 300), "frame 1")
    assert (out[100:] == 100).all()
    assert (out[:20] != 100).any()


def test_contact_sheet_lays_frames_out_in_rows(tmp_path):
    sheet = draw.contact_sheet([_frame(10, 12) + i for i in range(5)], columns=3, gap=2)
    assert sheet.shape == (22, 40, 3)
    assert (sheet[12:, :12] == 103).all()
    draw.save(str(tmp_path / "sheet.png"), sheet)
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_contact_sheet_refuses_frames_of_different_sizes():
    with pytest.raises(ValueError, match="one size"):
        draw.contact_sheet([_frame(), _frame(10, 10)], columns=2)


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OSError, match="could not be written"):
        draw.save(str(tmp_path / "nowhere" / "x.png"), _frame())
