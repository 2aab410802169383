"""The one affine of a clip: where pixels go, joints go."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.data import augment
from skipconv_jax.data.augment import PoseAugmentation, View, crop_affine

RNG = np.random.default_rng(0)
BOX = np.array([30.0, 20.0, 69.0, 99.0])
VIEWS = [
    View(),
    View(scale=0.6, rotation=35),
    View(scale=1.3, rotation=-40, mirrored=True),
    View(rotation=17, mirrored=True),
]


@pytest.mark.parametrize("view", VIEWS)
def test_pixels_and_joints_move_together(view):
    """A bright spot drawn on a joint is found where the joint was sent."""
    affine = crop_affine(BOX, 128, 96, view)
    for joint in RNG.uniform(BOX[:2] + 8, BOX[2:] - 8, (5, 2)):
        image = np.zeros((120, 110, 3), np.uint8)
        centre = tuple(int(v) for v in np.round(joint * 16))
        cv2.circle(image, centre, 3 * 16, (255, 255, 255), -1, cv2.LINE_AA, 4)
        crop = augment.warp_frames(image[None], affine, 128, 96)[0, :, :, 0].astype(float)
        rows, columns = np.indices(crop.shape)
        found = np.array([(columns * crop).sum(), (rows * crop).sum()]) / crop.sum()
        np.testing.assert_allclose(found, augment.warp_joints(joint, affine), atol=0.15)


def test_the_box_is_centred_and_fills_the_crop_up_to_the_margin():
    affine = crop_affine(BOX, 100, 100, margin=1.25)
    corners = augment.warp_joints(BOX.reshape(2, 2), affine)
    np.testing.assert_allclose(corners.mean(axis=0), [49.5, 49.5], atol=1e-4)
    np.testing.assert_allclose(corners[1, 1] - corners[0, 1], 79, atol=1e-3)  # 80 rows: 100 / 1.25


def test_rotation_is_counter_clockwise_as_seen():
    affine = crop_affine(BOX, 100, 100, View(rotation=90))
    centre = BOX.reshape(2, 2).mean(axis=0)
    right_of_centre = augment.warp_joints(centre + np.array([10, 0]), affine)
    assert right_of_centre[1] < 49.5 - 5  # turned to the top
    np.testing.assert_allclose(right_of_centre[0], 49.5, atol=1e-3)


def test_inverse_affine_leads_back():
    affine = crop_affine(BOX, 128, 96, VIEWS[2])
    points = RNG.uniform(0, 90, (7, 2))
    back = augment.warp_joints(augment.warp_joints(points, affine), augment.invert_affine(affine))
    np.testing.assert_allclose(back, points, atol=1e-2)


def test_draws_stay_in_their_ranges_and_cover_them():
    ranges = PoseAugmentation(brightness=0.2, contrast=0.3)
    views = [ranges.draw(RNG) for _ in range(400)]
    scales, angles = (np.array([getattr(v, name) for v in views]) for name in ("scale", "rotation"))
    assert 0.6 <= scales.min() < 0.62
    assert 1.38 < scales.max() <= 1.4
    assert -40 <= angles.min() < -38
    assert 38 < angles.max() <= 40
    assert 150 < sum(v.mirrored for v in views) < 250
    assert max(abs(v.brightness) for v in views) <= 0.2 * 255
    assert min(v.contrast for v in views) >= 0.7


def test_mirroring_exchanges_sides():
    joints, visible = RNG.normal(size=(3, 15, 2)), RNG.random((3, 15)) < 0.5
    swapped, seen = augment.mirror_joints(joints, visible)
    np.testing.assert_array_equal(swapped[:, 3], joints[:, 4])
    np.testing.assert_array_equal(seen[:, 14], visible[:, 13])
    np.testing.assert_array_equal(swapped[:, :3], joints[:, :3])


def test_light_is_the_same_for_all_frames_and_can_be_left_alone():
    frames = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert augment.change_light(frames, View()) is frames
    lit = augment.change_light(frames, View(brightness=30, contrast=0.8))
    expected = ((frames - 127.5) * 0.8 + 157.5).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(lit, expected)


def test_normalisation_agrees_between_numpy_jax_and_the_definition():
    frames = RNG.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    expected = (frames / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    on_host, on_device = augment.normalize(frames), augment.normalize(jnp.asarray(frames))
    assert on_host.dtype == on_device.dtype == np.float32
    np.testing.assert_allclose(on_host, expected, atol=2e-6)
    np.testing.assert_allclose(on_device, expected, atol=2e-6)
    np.testing.assert_array_equal(augment.denormalize(on_host), frames)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"scale": (1.4, 0.6)}, "scale"),
        ({"scale": 1.0}, "scale"),
        ({"rotation": -1}, "rotation"),
        ({"flip": 1.5}, "flip"),
    ],
)
def test_bad_ranges_are_named(change, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        PoseAugmentation(**change)
