"""Anchors, matching and losses against the effdet package, an independent implementation."""

import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.tasks.detection import DetectionTask

SIZE, CLASSES = (192, 320), 3


@pytest.fixture(scope="module")
def config(effdet):
    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    config.image_size, config.num_classes = SIZE, CLASSES
    config.jit_loss = False
    return config


@pytest.fixture(scope="module")
def anchors(config):
    from effdet.anchors import Anchors

    return Anchors.from_config(config)


def test_anchors(anchors):
    theirs = anchors.boxes.numpy()[:, [1, 0, 3, 2]]  # rows first there
    np.testing.assert_allclose(DetectionTask(SIZE).anchors, theirs, rtol=1e-5, atol=1e-4)


def test_targets_and_losses(anchors, config, torch):
    from effdet.anchors import AnchorLabeler
    from effdet.loss import DetectionLoss

    rng = np.random.default_rng(0)
    frames, objects = 2, 6
    low = rng.uniform(0, 100, (frames, objects, 2))
    boxes = np.concatenate([low, low + rng.uniform(12, 90, low.shape)], -1).astype(np.float32)
    labels = rng.integers(0, CLASSES, (frames, objects)).astype(np.int32)
    labels[1, 4:] = -1

    task = DetectionTask(SIZE)
    truth = {"boxes": jnp.asarray(boxes), "labels": jnp.asarray(labels)}
    ours = task.targets(truth)

    labeler = AnchorLabeler(anchors, CLASSES)
    kinds = torch.from_numpy(np.where(labels >= 0, labels + 1, -1).astype(np.float32))
    corners = torch.from_numpy(boxes[..., [1, 0, 3, 2]])
    per_level = labeler.batch_label_anchors(corners, kinds)
    theirs = np.concatenate([level.reshape(frames, -1).numpy() for level in per_level[0]], axis=1)
    codes = np.concatenate([level.reshape(frames, -1, 4).numpy() for level in per_level[1]], axis=1)
    np.testing.assert_array_equal(ours.labels, theirs)
    np.testing.assert_allclose(ours.codes, codes, rtol=1e-4, atol=1e-5)
    assert np.sum(theirs >= 0) > 10

    logits = rng.normal(-3, 1, (frames, theirs.shape[1], CLASSES)).astype(np.float32)
    outputs = rng.normal(0, 0.2, (frames, theirs.shape[1], 4)).astype(np.float32)

    def levels(values):
        start, parts = 0, []
        for level in per_level[0]:
            height, width = level.shape[1:3]
            rows = values[:, start : start + height * width * 9]
            rows = rows.reshape(frames, height, width, -1)
            parts.append(torch.from_numpy(np.ascontiguousarray(rows)).permute(0, 3, 1, 2))
            start += height * width * 9
        return parts

    _, focal, box = DetectionLoss(config)(levels(logits), levels(outputs), *per_level)
    terms = task.losses((jnp.asarray(logits), jnp.asarray(outputs)), truth)
    np.testing.assert_allclose(terms["class"], focal.numpy(), rtol=1e-4)
    np.testing.assert_allclose(terms["box"], 50 * box.numpy(), rtol=1e-4)
