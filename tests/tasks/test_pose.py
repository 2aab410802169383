"""Heatmaps, loss, decoding and PCK of the pose task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from skipconv_jax.data.jhmdb_folder import JhmdbFolder
from skipconv_jax.tasks import pose
from skipconv_jax.tasks.pose import JOINTS, MIRROR, Pck, PoseTask, decode, heatmap_targets

RNG = np.random.default_rng(0)


def reference_heatmap(x, y, height, width, stride=4, sigma=2.0):
    """Pixel by pixel, as the public HRNet code states it."""
    cx, cy = int(x / stride + 0.5), int(y / stride + 0.5)
    out = np.zeros((height, width))
    for row in range(max(cy - 6, 0), min(cy + 7, height)):
        for column in range(max(cx - 6, 0), min(cx + 7, width)):
            out[row, column] = np.exp(-((row - cy) ** 2 + (column - cx) ** 2) / (2 * sigma**2))
    return out


def test_targets_equal_the_written_out_gaussian_inside_at_and_beyond_the_border():
    joints = np.concatenate([RNG.uniform(-40, 140, (60, 2)), [[0, 0], [95, 63], [-1, 30]]])
    maps, weights = heatmap_targets(
        jnp.asarray(joints[None], jnp.float32), jnp.ones((1, len(joints)), bool), 16, 24
    )
    assert maps.shape == (1, 16, 24, len(joints))
    for j, (x, y) in enumerate(joints):
        expected = reference_heatmap(x, y, 16, 24)
        np.testing.assert_allclose(maps[0, :, :, j], expected, atol=1e-6)
        assert weights[0, j] == float(expected.any())
    assert 0 < weights.sum() < len(joints)  # the sample has joints of both kinds


def test_targets_window_is_13_wide_and_peaks_at_1():
    maps, _ = heatmap_targets(jnp.array([[[100.0, 100.0]]]), jnp.ones((1, 1), bool), 64, 64)
    rows, columns = np.nonzero(np.asarray(maps[0, :, :, 0]))
    assert (np.ptp(rows), np.ptp(columns)) == (12, 12)
    assert maps.max() == 1
    assert maps[0, 25, 25, 0] == 1


def test_an_invisible_joint_has_no_target_whatever_its_position():
    joints = jnp.array([[[np.nan, np.inf], [20.0, 20.0]]])
    maps, weights = heatmap_targets(joints, jnp.array([[False, True]]), 16, 16)
    np.testing.assert_array_equal(weights, [[0, 1]])
    assert not np.any(maps[..., 0])
    assert np.all(np.isfinite(maps))


def test_loss_is_half_the_squared_error_averaged_over_joints():
    prediction, target = RNG.normal(size=(2, 3, 8, 8, 15)).astype(np.float32)
    weights = (RNG.random((3, 15)) < 0.7).astype(np.float32)
    expected = 0.0
    for j in range(15):
        error = weights[:, None, None, j] * (prediction[..., j] - target[..., j])
        expected += 0.5 * np.mean(error**2)
    loss = pose.heatmap_loss(jnp.asarray(prediction), jnp.asarray(target), jnp.asarray(weights))
    np.testing.assert_allclose(loss, expected / 15, rtol=1e-5)


def test_loss_takes_bfloat16_predictions_and_answers_in_float32():
    maps = jnp.ones((1, 4, 4, 15), jnp.bfloat16)
    loss = pose.heatmap_loss(maps, jnp.zeros((1, 4, 4, 15)), jnp.ones((1, 15)))
    assert loss.dtype == jnp.float32
    assert loss == 0.5


def test_decode_undoes_targets_to_the_rounding_of_the_grid():
    joints = RNG.uniform(4, 250, (2, 3, 15, 2)).astype(np.float32)
    maps, _ = heatmap_targets(jnp.asarray(joints), jnp.ones((2, 3, 15), bool), 64, 64)
    found, confidence = jax.jit(decode)(maps)
    # Half a heatmap pixel of rounding; the symmetric Gaussian gives no reason to move a quarter.
    assert np.abs(found - joints).max() <= 2.0 + 1e-4
    np.testing.assert_array_equal(confidence, np.ones((2, 3, 15)))


def test_decode_moves_a_quarter_pixel_towards_the_higher_neighbour():
    maps = np.zeros((1, 8, 10, 1), np.float32)
    maps[0, 4, 6, 0], maps[0, 4, 7, 0], maps[0, 5, 6, 0], maps[0, 3, 6, 0] = 1, 0.5, 0.1, 0.2
    found, confidence = decode(jnp.asarray(maps), stride=4)
    np.testing.assert_allclose(found[0, 0], [4 * 6.25, 4 * 3.75])
    assert confidence[0, 0] == 1


@pytest.mark.parametrize(("row", "column"), [(0, 0), (7, 9), (0, 9), (3, 0)])
def test_decode_stays_on_the_border(row, column):
    maps = np.zeros((1, 8, 10, 1), np.float32)
    maps[0, row, column, 0] = 1
    found, _ = decode(jnp.asarray(maps), stride=1)
    np.testing.assert_array_equal(found[0, 0], [column, row])


def test_task_gives_the_loss_of_its_targets_and_no_gradient_to_hidden_joints():
    task = PoseTask()
    joints = jnp.asarray(RNG.uniform(0, 63, (2, 15, 2)), jnp.float32)
    visible = jnp.ones((2, 15), bool).at[:, 3].set(False)
    outputs = jnp.asarray(RNG.normal(size=(2, 16, 16, 15)), jnp.float32)

    def loss(x):
        return task.losses(x, {"joints": joints, "visible": visible})["heatmap"]

    gradient = jax.grad(loss)(outputs)
    assert not np.any(gradient[..., 3])
    assert np.all(np.any(gradient[..., 4] != 0, axis=(1, 2)))


def test_mirror_is_an_involution_that_exchanges_the_names_of_sides():
    mirrored = [JOINTS[j] for j in MIRROR]
    swapped = [
        name.replace("right", "?").replace("left", "right").replace("?", "left") for name in JOINTS
    ]
    assert mirrored == swapped
    assert [MIRROR[j] for j in MIRROR] == list(range(15))


def test_matlab_pixels_start_at_one():
    np.testing.assert_array_equal(pose.from_matlab(np.array([1.0, 320.0])), [0, 319])
    np.testing.assert_array_equal(pose.to_matlab(pose.from_matlab(np.array([7.5]))), [7.5])


def frame(distance):
    truth = np.zeros((1, 15, 2))
    predicted = truth.copy()
    predicted[0, :, 0] = distance
    return predicted, truth


@pytest.mark.parametrize(
    ("convention", "distance", "hit"),
    # A box of 10 columns has extent 9: limits are 1.8 (inclusive) and 2 (exclusive).
    [("extent", 1.8, 1), ("extent", 1.81, 0), ("pixels", 1.99, 1), ("pixels", 2.0, 0)],
)
def test_pck_limits_of_both_conventions(convention, distance, hit):
    pck = Pck(convention=convention)
    pck.update(*frame(distance), size=[9.0])
    assert pck.result()["mean15"] == hit


def test_pck_in_crop_pixels_equals_pck_in_source_pixels():
    truth = RNG.uniform(0, 200, (6, 15, 2))
    predicted = truth + RNG.normal(scale=12, size=truth.shape)
    size = RNG.uniform(40, 90, 6)
    for convention in pose.CONVENTIONS:
        source, crop = Pck(convention=convention), Pck(convention=convention)
        source.update(predicted, truth, size)
        crop.update(predicted * 2.3, truth * 2.3, size * 2.3, scale=np.full(6, 2.3))
        np.testing.assert_array_equal(source.hits, crop.hits)


def test_pck_groups_and_means():
    pck = Pck()
    predicted, truth = np.zeros((2, 4, 15, 2))
    predicted[:, 2] = 100  # face always wrong
    predicted[:2, 3] = 100  # right shoulder wrong in half of the frames
    predicted[:, 0] = 100  # neck: only in the mean over 15
    pck.update(predicted, truth, np.full(4, 10.0))
    result = pck.result()
    assert result["group/head"] == 0
    assert result["group/shoulder"] == 0.75
    np.testing.assert_allclose(result["mean15"], 12.5 / 15)
    np.testing.assert_allclose(result["mean13"], 11.5 / 13)
    np.testing.assert_allclose(result["mean7"], 5.75 / 7)


def test_pck_leaves_out_hidden_joints_and_counts_nan_as_a_miss():
    predicted, truth = np.zeros((2, 2, 15, 2))
    predicted[0, 5], truth[1, 6] = np.nan, np.nan
    visible = np.ones((2, 15), bool)
    visible[1, 6] = visible[:, 9] = False
    pck = Pck()
    pck.update(predicted, truth, [10.0, 10.0], visible)
    result = pck.result()
    assert result["right_hip"] == 0.5
    assert result["left_hip"] == 1
    assert np.isnan(result["right_knee"])
    np.testing.assert_allclose(result["mean15"], 13.5 / 14)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`convention`"):
        Pck(convention="tight")
    with pytest.raises(ValueError, match="`threshold`"):
        Pck(threshold=0)
    with pytest.raises(ValueError, match="`predicted`"):
        Pck().update(np.zeros((3, 13, 2)), np.zeros((3, 15, 2)), 1.0)
    with pytest.raises(ValueError, match="`joints`"):
        heatmap_targets(jnp.zeros((2, 15, 2)), jnp.ones((2, 14), bool), 8, 8)
    with pytest.raises(ValueError, match="`stride`"):
        heatmap_targets(jnp.zeros((2, 15, 2)), jnp.ones((2, 15), bool), 8, 8, stride=0)
    with pytest.raises(ValueError, match="`heatmaps`"):
        pose.heatmap_loss(jnp.zeros((1, 8, 8, 15)), jnp.zeros((1, 16, 16, 15)), jnp.ones((1, 15)))
    with pytest.raises(ValueError, match="`weights`"):
        pose.heatmap_loss(jnp.zeros((2, 8, 8, 15)), jnp.zeros((2, 8, 8, 15)), jnp.ones((2, 14)))
    for shape in ((8, 8), (2, 0, 8, 15)):
        with pytest.raises(ValueError, match="`heatmaps`"):
            pose.decode(jnp.zeros(shape))
    joints = np.zeros((3, 15, 2))
    for size in (np.ones(2), np.full(3, np.nan), -1.0, np.ones((3, 1))):
        with pytest.raises(ValueError, match="`size`"):
            Pck().update(joints, joints, size)
    with pytest.raises(ValueError, match="`visible`"):
        Pck().update(joints, joints, 1.0, np.ones((3, 14), bool))


@pytest.mark.parametrize(
    ("convention", "mean", "hits"),
    [
        (
            "extent",
            0.8283,
            (31, 32, 27, 39, 36, 38, 36, 37, 32, 39, 37, 30, 11, 36, 36),
        ),
        ("pixels", 0.8333, None),
    ],
)
def test_known_pck_of_a_published_estimate_on_the_real_clip(shared_dir, convention, mean, hits):
    folder = JhmdbFolder(shared_dir / "data" / "jhmdb")
    clip = folder.clip("catch/Goal_Keeping_Tips_catch_f_cm_np1_fr_med_2")
    estimate = scipy.io.loadmat(shared_dir / "data" / "jhmdb_estimated_joints.mat")["pos_img"]
    predicted = pose.from_matlab(estimate.transpose(2, 1, 0))
    pck = Pck(convention=convention)
    pck.update(predicted, clip.joints, clip.sizes, clip.visible)
    result = pck.result()
    assert round(result["mean15"], 4) == mean
    if hits is not None:
        np.testing.assert_array_equal(pck.hits, hits)
