"""AP: equal to pycocotools, known by hand, and UA-DETRAC's options."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from skipconv_jax.tasks.detection.metrics import AveragePrecision, Detections

CLASSES = ("car", "bus", "van", "others")


def random_frames(seed, frames=12):
    """Ground truth with crowds; detections near, far, double, of another class, missing."""
    rng = np.random.default_rng(seed)
    for _ in range(frames):
        n = int(rng.integers(0, 9))
        corner, size = rng.uniform(0, 300, (n, 2)), rng.uniform(8, 160, (n, 2))
        boxes = np.concatenate([corner, corner + size], axis=1)
        labels = rng.integers(0, 4, n)
        near = np.concatenate([boxes, boxes]) + rng.normal(scale=6, size=(2 * n, 4))
        far = rng.uniform(0, 300, (4, 2))
        found = np.concatenate([near, np.concatenate([far, far + 40], axis=1)])
        kinds = np.concatenate([labels, rng.permutation(labels), rng.integers(0, 4, 4)])
        keep = rng.random(len(found)) < 0.8
        scores = rng.random(len(found)).round(2)  # with ties
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        detections = Detections(found[keep], scores[keep], kinds[keep])
        yield detections, boxes, labels, rng.random(n) < 0.15


def pycocotools(truth, found):
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = truth
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_pycocotools(agnostic, seed):
    score = AveragePrecision(CLASSES, agnostic)
    for detections, boxes, labels, crowd in random_frames(seed):
        score.update(detections, boxes, labels, crowd=crowd)
    result, reference = score.result(), pycocotools(*score.coco())
    keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    np.testing.assert_allclose([result[k] for k in keys], reference.stats[:6], atol=1e-12)
    np.testing.assert_allclose(result["recall100"], reference.stats[8], atol=1e-12)
    assert 0.1 < result["ap"] < 0.95
    if not agnostic:
        for i, name in enumerate(CLASSES):
            expected = reference.eval["precision"][:, :, i, 0, 2].mean()
            np.testing.assert_allclose(result[f"ap/{name}"], expected, atol=1e-12)


def one(box, score=0.9, label=0):
    return Detections(np.array([box], float), np.array([score]), np.array([label]))


BOX = np.array([[10.0, 10, 110, 110]])


def test_known_by_hand():
    """IoU .81 counts at seven of the ten thresholds from .5 to .95."""
    score = AveragePrecision()
    score.update(one([10, 10, 100, 100]), BOX, [0])
    result = score.result()
    np.testing.assert_allclose(result["ap"], 0.7, atol=1e-6)
    np.testing.assert_allclose([result["ap50"], result["ap75"]], 1)
    assert np.isnan(result["ap_small"])


def test_classes_matter_only_where_they_are_told_apart():
    for agnostic, expected in ((True, 1.0), (False, 0.0)):
        score = AveragePrecision(CLASSES, agnostic)
        score.update(one(BOX[0], label=1), BOX, [0])
        np.testing.assert_allclose(score.result()["ap"], expected, atol=1e-9)


def test_dropping_what_ignored_regions_cover_by_half():
    boxes = np.array([[0.0, 0, 20, 20], [100, 100, 140, 140]])
    found = Detections(
        np.array([[100.0, 100, 140, 140], [51, 0, 71, 20]]), np.array([0.5, 0.9]), np.zeros(2, int)
    )
    regions = np.array([[0.0, 0, 61, 10], [0, 10, 61, 40]])
    plain, dropping = AveragePrecision(), AveragePrecision(drop_ignored=True)
    for score in (plain, dropping):
        score.update(found, boxes, [0, 0], regions)
    assert plain.result()["ap"] < 0.3
    np.testing.assert_allclose(dropping.result()["ap"], 1)
    assert len(dropping.coco()[0]["annotations"]) == 1
    half = AveragePrecision(drop_ignored=True)  # 9 of 20 columns are covered: it stays
    half.update(one([52, 0, 72, 20]), boxes[1:], [0], regions)
    assert len(half.coco()[1]) == 1


def test_nothing_found_and_nothing_to_find():
    empty = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    nothing_found, nothing_there = AveragePrecision(), AveragePrecision()
    nothing_found.update(empty, BOX, [0])
    assert nothing_found.result()["ap"] == 0
    nothing_there.update(one(BOX[0]), np.zeros((0, 4)), [])
    assert np.isnan(nothing_there.result()["ap"])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`classes`"):
        AveragePrecision(())
    with pytest.raises(ValueError, match="`max_detections`"):
        AveragePrecision(max_detections=0)
    with pytest.raises(ValueError, match="`boxes`"):
        AveragePrecision().update(one(BOX[0]), BOX, [0, 1])
    with pytest.raises(ValueError, match="`labels`"):
        AveragePrecision(CLASSES, agnostic=False).update(one(BOX[0], label=4), BOX, [0])
