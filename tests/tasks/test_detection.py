"""Detection: losses against straightforward NumPy, predictions, and what is left out of both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.tasks.detection import (
    DetectionTask,
    Targets,
    focal_loss,
    huber_loss,
    unpack,
)
from skipconv_jax.tasks.detection.anchors import encode

TASK = DetectionTask(size=(64, 96), levels=3, keep=10)
COUNT = len(TASK.anchors)


def truth(frames=1):
    boxes = np.zeros((frames, 4, 4), np.float32)
    labels = np.full((frames, 4), -1, np.int32)
    boxes[:, 0], labels[:, 0] = [10, 12, 40, 44], 1
    boxes[:, 1], labels[:, 1] = [50, 20, 90, 40], 0
    return {"boxes": jnp.asarray(boxes), "labels": jnp.asarray(labels)}


def plain_focal(logits, labels, alpha, gamma):
    total = 0.0
    for row, label in zip(np.asarray(logits, np.float64), np.asarray(labels), strict=True):
        for k, z in enumerate(row):
            p = 1 / (1 + np.exp(-z))
            if label == k:
                total -= alpha * (1 - p) ** gamma * np.log(p)
            elif label != -2:
                total -= (1 - alpha) * p**gamma * np.log(1 - p)
    return total


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 1.5), (0.5, 0.0), (0.9, 2.0)])
def test_focal_loss_matches_a_loop(alpha, gamma):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (20, 3)).astype(np.float32)
    labels = rng.integers(-2, 3, 20).astype(np.int32)
    ours = focal_loss(jnp.asarray(logits), jnp.asarray(labels), alpha, gamma)
    np.testing.assert_allclose(ours, plain_focal(logits, labels, alpha, gamma), rtol=1e-5)


def test_focal_loss_and_its_gradient_stay_finite_for_sure_answers():
    logits = jnp.asarray([[200.0, -200.0], [-200.0, 200.0]])
    labels = jnp.asarray([0, 0])
    value, gradient = jax.value_and_grad(focal_loss)(logits, labels)
    # Right for sure costs nothing; wrong for sure costs its logit, weighted.
    np.testing.assert_allclose(value, 0.25 * 200 + 0.75 * 200, rtol=1e-5)
    assert np.all(np.isfinite(gradient))


def test_huber_loss_matches_a_loop():
    rng = np.random.default_rng(1)
    codes = rng.normal(0, 0.2, (30, 4)).astype(np.float32)
    goal = rng.normal(0, 0.2, (30, 4)).astype(np.float32)
    labels = rng.integers(-2, 2, 30).astype(np.int32)
    expected = 0.0
    for y, t, label in zip(codes, goal, labels, strict=True):
        for e in np.abs(y - t) if label >= 0 else ():
            expected += e**2 / 2 if e <= 0.1 else 0.1 * (e - 0.05)
    ours = huber_loss(jnp.asarray(codes), Targets(jnp.asarray(labels), jnp.asarray(goal)))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_targets_name_classes_and_codes():
    targets = TASK.targets(truth())
    labels = np.asarray(targets.labels[0])
    assert targets.codes.shape == (1, COUNT, 4)
    assert set(labels.tolist()) == {-1, 0, 1}
    np.testing.assert_array_equal(np.asarray(targets.codes[0])[labels < 0], 0)
    box = jnp.asarray([[10.0, 12.0, 40.0, 44.0]])
    mine = labels == 1
    expected = encode(box, jnp.asarray(TASK.anchors[mine]))
    np.testing.assert_allclose(np.asarray(targets.codes[0])[mine], expected, rtol=1e-6)


def test_losses_are_normalised_by_the_positives():
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.normal(-2, 1, (2, COUNT, 2)), jnp.float32)
    codes = jnp.asarray(rng.normal(0, 0.1, (2, COUNT, 4)), jnp.float32)
    terms = jax.jit(TASK.losses)((logits, codes), truth(2))
    targets = TASK.targets(truth(2))
    positives = int(np.sum(np.asarray(targets.labels) >= 0)) + 1
    focal, huber = focal_loss(logits, targets.labels), huber_loss(codes, targets)
    np.testing.assert_allclose(terms["class"], focal / positives, rtol=1e-5)
    np.testing.assert_allclose(terms["box"], 50 * huber / (4 * positives), rtol=1e-5)


def test_frames_without_annotation_cost_nothing():
    outputs = (jnp.ones((2, COUNT, 2)), jnp.ones((2, COUNT, 4)))
    one = {**truth(2), "annotated": jnp.asarray([True, False])}
    alone = TASK.losses((outputs[0][:1], outputs[1][:1]), truth(1))
    both = TASK.losses(outputs, one)
    for name in ("class", "box"):
        np.testing.assert_allclose(both[name], alone[name], rtol=1e-6)
    none = TASK.losses(outputs, {**truth(2), "annotated": jnp.zeros(2, bool)})
    assert float(none["class"]) == float(none["box"]) == 0.0


def test_frames_without_objects_are_negatives():
    empty = {"boxes": jnp.zeros((1, 0, 4)), "labels": jnp.zeros((1, 0), jnp.int32)}
    terms = TASK.losses((jnp.zeros((1, COUNT, 2)), jnp.ones((1, COUNT, 4))), empty)
    assert float(terms["box"]) == 0.0
    expected = COUNT * 2 * 0.75 * 0.5**1.5 * np.log(2)
    np.testing.assert_allclose(terms["class"], expected, rtol=1e-5)


def test_background_in_ignored_regions_is_not_asked():
    plain = np.asarray(TASK.targets(truth()).labels[0])
    region = np.array([[0, 0, 48, 64], [0, 0, 0, 0]], np.float32)[None]
    labels = np.asarray(TASK.targets({**truth(), "ignored": jnp.asarray(region)}).labels[0])
    np.testing.assert_array_equal(labels[plain >= 0], plain[plain >= 0])  # objects stay
    hidden = labels == -2
    anchors = TASK.anchors
    width = np.clip(np.minimum(anchors[:, 2], 48) - np.maximum(anchors[:, 0], 0), 0, None)
    height = np.clip(np.minimum(anchors[:, 3], 64) - np.maximum(anchors[:, 1], 0), 0, None)
    area = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
    np.testing.assert_array_equal(hidden, (width * height >= 0.5 * area) & (plain < 0))
    assert hidden.any()


def perfect_outputs(frames=1):
    """What a network says that has learnt the targets by heart."""
    targets = TASK.targets(truth(frames))
    own = jax.nn.one_hot(targets.labels, 2)
    return own * 12.0 - 8.0, targets.codes


def test_perfect_outputs_give_the_objects_back():
    predictions = jax.jit(TASK.predict)(perfect_outputs(2))
    assert predictions.boxes.shape == (2, 10, 4)
    found = unpack(predictions, threshold=0.5)
    for frame in found:
        order = np.argsort(frame.labels)
        assert frame.labels[order].tolist() == [0, 1]
        expected = [[50, 20, 90, 40], [10, 12, 40, 44]]
        np.testing.assert_allclose(frame.boxes[order], expected, atol=1e-3)
        np.testing.assert_allclose(frame.scores, jax.nn.sigmoid(4.0), rtol=1e-5)


def test_predictions_stay_inside_and_are_padded():
    task = DetectionTask(size=(64, 96), levels=3, candidates=1, keep=4)
    logits = jnp.full((COUNT, 1), -3.0).at[0, 0].set(3.0)
    predictions = task.predict((logits, jnp.zeros((COUNT, 4)).at[0, 2:].set(100.0)))
    np.testing.assert_allclose(predictions.boxes[0], [0, 0, 96, 64])  # the size before: infinite
    assert np.asarray(predictions.labels).tolist() == [0, -1, -1, -1]
    np.testing.assert_array_equal(predictions.scores[1:], 0)
    assert len(unpack(predictions).scores) == 1


def test_predictions_fall_by_score_and_clip_axes_nest():
    rng = np.random.default_rng(4)
    logits = jnp.asarray(rng.normal(0, 1, (2, 3, COUNT, 2)), jnp.float32)
    codes = jnp.asarray(rng.normal(0, 0.1, (2, 3, COUNT, 4)), jnp.float32)
    predictions = jax.jit(TASK.predict)((logits, codes))
    assert predictions.scores.shape == (2, 3, 10)
    assert np.all(np.diff(predictions.scores, axis=-1) <= 0)
    frames = unpack(predictions)
    assert len(frames) == 2
    assert len(frames[0]) == 3
    alone = TASK.predict((logits[1, 2], codes[1, 2]))
    np.testing.assert_allclose(frames[1][2].boxes, unpack(alone).boxes, rtol=1e-5, atol=1e-4)


def test_one_compilation_serves_a_stream():
    predict = jax.jit(TASK.predict)
    outputs = perfect_outputs()
    for shift in range(3):
        predict((outputs[0] - shift, outputs[1]))
    assert predict._cache_size() == 1


def test_sizes_are_checked():
    with pytest.raises(
        ValueError, match=r"`outputs` \(of 7 anchors\) must have the \d+ anchors of"
    ):
        TASK.predict((jnp.zeros((7, 2)), jnp.zeros((7, 4))))
    with pytest.raises(ValueError, match=r"`outputs` \(of 7 anchors\)"):
        TASK.losses((jnp.zeros((1, 7, 2)), jnp.zeros((1, 7, 4))), truth())
    with pytest.raises(ValueError, match=r"`keep` \(=0\) must be at least 1; use"):
        DetectionTask(keep=0)
    with pytest.raises(ValueError, match="must be positive"):
        DetectionTask(size=(0, 64))
