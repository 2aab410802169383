"""Batches of clips with boxes: where pixels go, boxes go; determinism, resume, evaluation."""

import json

import cv2
import numpy as np
import pytest

from skipconv_jax.data.augment import denormalize
from skipconv_jax.data.detection_pipeline import (
    DetectionAugmentation,
    Labels,
    make_eval_iterator,
    make_train_iterator,
    steps_per_epoch,
)
from skipconv_jax.data.labelled_videos import VideoWindow
from skipconv_jax.data.placement import MEAN_COLOR, DetectionView, place
from skipconv_jax.data.ua_detrac_folder import FolderVideos, parse_annotations

SIZE = (64, 64)


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


@pytest.fixture(scope="module")
def videos(traffic):
    return FolderVideos(traffic, "train")


def train(source, **changes):
    settings = {"batch": 2, "length": 3, "size": SIZE, "seed": 4, "threads": 2}
    return make_train_iterator(source, **{**settings, **changes})


def test_every_array_begins_with_batch_and_time(videos):
    batch = next(train(videos))
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "frames": ((2, 3, 64, 64, 3), "float32"),
        "boxes": ((2, 3, 128, 4), "float32"),
        "labels": ((2, 3, 128), "int32"),
        "ignored": ((2, 3, 16, 4), "float32"),
        "annotated": ((2, 3), "bool"),
        "scale": ((2, 3), "float32"),
    }


class Painted:
    """One video whose only object is painted exactly where its box is."""

    names, lengths, classes = ["v"], [4], ("a", "b")

    def __init__(self, box, ignored=(), shape=(90, 160), truth=None):
        image = np.zeros((*shape, 3), np.uint8)
        x1, y1, x2, y2 = box
        image[y1:y2, x1:x2] = 255
        ok, data = cv2.imencode(".png", image)
        assert ok
        self._data = data.tobytes()
        targets = "".join(
            f'<target id="{i}"><box left="{b[0]}" top="{b[1]}" width="{b[2] - b[0]}" '
            f'height="{b[3] - b[1]}"/><attribute vehicle_type="bus"/></target>'
            for i, b in enumerate(truth or [box])
        )
        frames = "".join(
            f'<frame num="{n}"><target_list>{targets}</target_list></frame>' for n in (1, 2, 4)
        )
        self._track = parse_annotations(f'<sequence name="v">{frames}</sequence>').track(4)
        self._ignored = np.array(ignored, np.float32).reshape(-1, 4)

    def read(self, video, times):
        del video
        return VideoWindow([self._data] * len(times), self._track.take(times), self._ignored)


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.9])
def test_boxes_lie_on_the_painted_object(flip, scale):
    source = Painted((60, 30, 100, 62))
    seen = 0
    for seed in range(3):
        ranges = DetectionAugmentation(flip=flip, scale=(scale, scale))
        batch = next(train(source, size=(96, 128), augmentation=ranges, seed=seed))
        for b in range(2):
            bright = denormalize(batch["frames"][b, 0])[..., 0] > 127
            bright &= np.abs(denormalize(batch["frames"][b, 0]) - MEAN_COLOR).max(axis=-1) > 60
            rows, columns = np.nonzero(bright)
            box = batch["boxes"][b, 0, 0]
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(box, found, atol=1.1)
            seen += 1
    assert seen == 6


def test_a_frame_is_resized_put_into_the_corner_and_padded_with_the_mean():
    where = place((90, 160), (64, 64), DetectionView())
    np.testing.assert_allclose(where.boxes(np.array([[0.0, 0, 160, 90]])), [[0, 0, 64, 36]])
    batch = next(make_eval_iterator(Painted((0, 0, 160, 90)), batch=1, size=SIZE, normalized=False))
    assert (batch["frames"][0, 0, :35] == 255).all()
    assert (batch["frames"][0, 0, 37:] == np.array(MEAN_COLOR)).all()
    np.testing.assert_allclose(batch["scale"], 0.4)


def test_boxes_past_the_edge_are_cut_and_invisible_ones_left_out():
    truth = [(-20, 10, 30, 40), (150, 80, 180, 120), (200, 10, 230, 30)]
    batch = next(make_eval_iterator(Painted((5, 5, 9, 9), truth=truth), batch=1, size=(90, 160)))
    np.testing.assert_allclose(batch["boxes"][0, 0, :2], [[0, 10, 30, 40], [150, 80, 160, 90]])
    assert (batch["labels"][0, 0, 2:] == -1).all()


def test_unannotated_frames_are_marked():
    batch = next(make_eval_iterator(Painted((5, 5, 9, 9)), batch=1, size=SIZE))
    np.testing.assert_array_equal(batch["annotated"][0], [True, True, False, True])
    assert (batch["labels"][0, 2] == -1).all()


def test_ignored_regions_are_given_hidden_and_drop_boxes():
    region = [(40, 20, 120, 70)]
    source = Painted((60, 30, 100, 62), ignored=region, truth=[(60, 30, 100, 62), (0, 0, 20, 20)])

    def first(**options):
        return next(make_eval_iterator(source, batch=1, size=(90, 160), labels=Labels(**options)))

    plain = first(agnostic=False)
    np.testing.assert_array_equal(plain["ignored"][0, 0, 0], region[0])
    np.testing.assert_array_equal(plain["labels"][0, 0, :3], [1, 1, -1])
    np.testing.assert_array_equal(first()["labels"][0, 0, :3], [0, 0, -1])
    dropped = first(drop_ignored=True)
    np.testing.assert_array_equal(dropped["boxes"][0, 0, 0], [0, 0, 20, 20])
    assert dropped["labels"][0, 0, 1] == -1
    hidden = denormalize(first(hide_ignored=True)["frames"][0, 0])
    assert np.abs(hidden[21:69, 41:119] - np.array(MEAN_COLOR)).max() <= 1
    with pytest.raises(ValueError, match="`max_boxes`"):
        first(max_boxes=1)
    with pytest.raises(ValueError, match="`max_ignored`"):
        first(max_ignored=0)


def test_batches_depend_on_seed_and_step_alone_and_resume_exactly(videos):
    first, again = train(videos), train(videos, threads=1, prefetch=1)
    for _ in range(3):
        assert_equal(next(first), next(again))
    state = json.loads(json.dumps(first.get_state()))
    resumed = train(videos)
    resumed.set_state(state)
    assert_equal(next(first), next(resumed))
    other = next(train(videos, seed=5))
    assert (other["frames"] != next(train(videos))["frames"]).any()


def test_processes_share_out_the_samples_of_one(videos):
    alone = next(train(videos, batch=4))
    for i in (0, 1):
        share = next(train(videos, batch=2, process=(i, 2)))
        for key, value in alone.items():
            np.testing.assert_array_equal(value[2 * i : 2 * i + 2], share[key], err_msg=key)


def test_evaluation_shows_every_frame_once_on_every_number_of_processes(videos):
    for processes in (1, 2):
        seen, counts = [], []
        for i in range(processes):
            batches = list(
                make_eval_iterator(videos, batch=4, length=3, size=SIZE, process=(i, processes))
            )
            counts.append(len(batches))
            for item in batches:
                real = item["valid"]
                seen += list(zip(item["video"][real], item["time"][real], strict=True))
        assert len(set(counts)) == 1
        assert sorted(seen) == [(v, t) for v in range(3) for t in range(20)]
    assert steps_per_epoch(videos, batch=2, length=3) == 9


def test_bad_arguments_are_named(videos):
    for change, name in (
        ({"batch": 0}, "batch"),
        ({"length": 21}, "length"),
        ({"process": (1, 1)}, "process"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`"):
            train(videos, **change)
    with pytest.raises(ValueError, match="`flip`"):
        DetectionAugmentation(flip=2)
    with pytest.raises(ValueError, match="`scale`"):
        DetectionAugmentation(scale=(2, 1))
