"""Anchors, box codes, matching and suppression against straightforward NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.tasks.detection.anchors import (
    decode,
    encode,
    intersections,
    iou,
    make_anchors,
    match,
    non_maximum_suppression,
)


def random_boxes(rng, count, size=100.0, smallest=4.0):
    low = rng.uniform(0, size - smallest, (count, 2))
    side = rng.uniform(smallest, size / 2, (count, 2))
    return np.concatenate([low, low + side], axis=1).astype(np.float32)


def plain_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = float(width) * float(height)
    area = [float(c[2] - c[0]) * float(c[3] - c[1]) for c in (a, b)]
    return shared / (sum(area) - shared)


def test_anchors_of_a_square_input():
    anchors = make_anchors((512, 512))
    assert anchors.shape == (49104, 4)
    assert anchors.dtype == np.float32
    # First position of stride 8: centre (4, 4), base size 4 * 8.
    np.testing.assert_allclose(anchors[0], [-12, -12, 20, 20])
    np.testing.assert_allclose(anchors[1], [4 - 22.4, 4 - 11.2, 4 + 22.4, 4 + 11.2], rtol=1e-6)
    np.testing.assert_allclose(anchors[2], [4 - 11.2, 4 - 22.4, 4 + 11.2, 4 + 22.4], rtol=1e-6)
    np.testing.assert_allclose(anchors[3], 4 + 16 * 2 ** (1 / 3) * np.array([-1, -1, 1, 1]))
    np.testing.assert_allclose(anchors[9] - anchors[0], [8, 0, 8, 0])  # the next column
    np.testing.assert_allclose(anchors[9 * 64] - anchors[0], [0, 8, 0, 8])  # the next row
    np.testing.assert_allclose(anchors[9 * 64 * 64], [8 - 32, 8 - 32, 8 + 32, 8 + 32])  # stride 16


def test_anchors_of_an_odd_input_spread_evenly():
    anchors = make_anchors((100, 60), levels=3, scale=2.0)
    shapes = [(13, 8), (7, 4), (4, 2)]
    assert len(anchors) == 9 * sum(h * w for h, w in shapes)
    last = anchors[-9]  # the last position of the coarsest level
    centre = (last[:2] + last[2:]) / 2
    np.testing.assert_allclose(centre, [60 - 60 / 2 / 2, 100 - 100 / 4 / 2])
    np.testing.assert_allclose(last[2:] - last[:2], [2 * 60 / 2, 2 * 100 / 4])


def test_anchors_are_cached_and_read_only():
    anchors = make_anchors((64, 64))
    assert make_anchors((64, 64)) is anchors
    with pytest.raises(ValueError, match="read-only"):
        anchors[0] = 0


@pytest.mark.parametrize("bad", [((0, 64), 5, 4.0), ((64, 64), 0, 4.0), ((64, 64), 5, 0.0)])
def test_anchors_reject_what_is_not_positive(bad):
    with pytest.raises(ValueError, match="must be positive"):
        make_anchors(*bad)


def test_iou_matches_a_loop():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 7), random_boxes(rng, 11)
    expected = [[plain_iou(p, q) for q in b] for p in a]
    np.testing.assert_allclose(iou(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-5)
    assert np.any(np.array(expected) > 0)


def test_empty_boxes_share_nothing():
    empty = jnp.asarray([[5.0, 5.0, 5.0, 5.0], [8.0, 8.0, 2.0, 2.0]])
    assert not np.any(iou(empty, empty))
    assert not np.any(intersections(empty, jnp.asarray([[0.0, 0.0, 9.0, 9.0]])))


def test_codes_of_a_known_box():
    anchor = jnp.asarray([[0.0, 0.0, 10.0, 20.0]])
    box = jnp.asarray([[5.0, 10.0, 25.0, 20.0]])  # centre (15, 15), 20 x 10
    np.testing.assert_allclose(
        encode(box, anchor), [[5 / 20, 10 / 10, np.log(10 / 20), np.log(20 / 10)]], rtol=1e-6
    )


def test_codes_invert():
    rng = np.random.default_rng(1)
    boxes, anchors = (jnp.asarray(random_boxes(rng, 50)) for _ in range(2))
    np.testing.assert_allclose(decode(encode(boxes, anchors), anchors), boxes, rtol=1e-5, atol=1e-4)


def plain_match(anchors, boxes, valid, threshold):
    table = np.array(
        [
            [plain_iou(b, a) if v else -1.0 for a in anchors]
            for b, v in zip(boxes, valid, strict=True)
        ]
    )
    result = np.where(table.max(0) >= threshold, table.argmax(0), -1)
    taken = set()
    for index in range(len(boxes)):
        anchor = int(table[index].argmax())
        if table[index, anchor] > 0 and anchor not in taken:
            taken.add(anchor)
            result[anchor] = index
    return result


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.95])
def test_matching_matches_a_loop(threshold):
    rng = np.random.default_rng(2)
    anchors = random_boxes(rng, 60)
    boxes = np.concatenate([anchors[:4] + 1.0, random_boxes(rng, 4)])
    boxes[6] = boxes[5]  # two objects that want the same anchor
    valid = np.array([1, 1, 1, 1, 0, 1, 1, 1], bool)
    ours = jax.jit(match)(jnp.asarray(anchors), jnp.asarray(boxes), jnp.asarray(valid), threshold)
    expected = plain_match(anchors, boxes, valid, threshold)
    np.testing.assert_array_equal(ours, expected)
    assert {0, 1, 2, 3, 5, 7} <= set(expected.tolist())  # force-matched even at 0.95
    assert not {4, 6} & set(np.unique(expected))


def test_objects_outside_and_frames_without_objects_match_nothing():
    anchors = jnp.asarray(make_anchors((64, 64), 3))
    far = jnp.asarray([[1e4, 1e4, 1e4 + 5, 1e4 + 5]])
    assert np.all(np.asarray(match(anchors, far, jnp.asarray([True]))) == -1)
    assert np.all(np.asarray(match(anchors, far, jnp.asarray([False]))) == -1)
    none = jnp.zeros((0, 4))
    assert np.all(np.asarray(match(anchors, none, jnp.zeros(0, bool))) == -1)


def plain_suppression(boxes, scores, labels, threshold, keep):
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] <= 0:
            continue
        repeats = (
            labels[index] == labels[k] and plain_iou(boxes[index], boxes[k]) > threshold
            for k in kept
        )
        if not any(repeats):
            kept.append(int(index))
    return kept[:keep]


@pytest.mark.parametrize("keep", [5, 80])
def test_suppression_matches_a_loop(keep):
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, 40)
    boxes = np.concatenate([boxes, boxes + rng.uniform(-3, 3, boxes.shape).astype(np.float32)])
    scores = rng.uniform(0, 1, len(boxes)).astype(np.float32)
    scores[::9] = 0.0
    labels = rng.integers(0, 2, len(boxes)).astype(np.int32)
    indices, found = jax.jit(non_maximum_suppression, static_argnums=(3, 4))(
        jnp.asarray(boxes), jnp.asarray(scores), jnp.asarray(labels), 0.5, keep
    )
    expected = plain_suppression(boxes, scores, labels, 0.5, keep)
    assert indices.shape == found.shape == (keep,)
    assert np.asarray(indices)[np.asarray(found)].tolist() == expected
    assert len(expected) == keep or not found[len(expected)]
    assert len(expected) < 70  # it did suppress
