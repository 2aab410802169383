"""Batches of clips: contents, determinism, exact resume, processes, evaluation."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skipconv_jax.data.augment import PoseAugmentation, denormalize, normalize
from skipconv_jax.data.pipeline import make_eval_iterator, make_train_iterator, steps_per_epoch
from skipconv_jax.tasks.pose import Pck
from skipconv_jax.training.loop import Options, Phase, run
from skipconv_jax.training.step import Figures, create_state

SIZE = (64, 48)


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


def train(clips, **changes):
    settings = {"batch": 3, "length": 4, "size": SIZE, "seed": 11, "threads": 2}
    return make_train_iterator(clips, **{**settings, **changes})


def test_every_array_begins_with_batch_and_time(synthetic_clips):
    batch = next(train(synthetic_clips))
    shapes = {key: (value.shape, value.dtype) for key, value in batch.items()}
    assert shapes == {
        "frames": ((3, 4, 64, 48, 3), np.float32),
        "joints": ((3, 4, 15, 2), np.float32),
        "visible": ((3, 4, 15), bool),
        "size": ((3, 4), np.float32),
        "scale": ((3, 4), np.float32),
    }


def test_batches_depend_on_seed_and_step_alone(synthetic_clips):
    first, again, cached = train(synthetic_clips), train(synthetic_clips), None
    cached = train(synthetic_clips, cache=True, threads=1, prefetch=1)
    other = train(synthetic_clips, seed=12)
    for _ in range(8):  # more than one epoch of 16 clips
        batch = next(first)
        assert_equal(batch, next(again))
        assert_equal(batch, next(cached))
        assert np.abs(batch["joints"] - next(other)["joints"]).max() > 1


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_resume_continues_with_the_very_next_batch(synthetic_clips, steps):
    """The state survives a trip through JSON; prefetching does not shift it."""
    running = train(synthetic_clips)
    for _ in range(steps):
        next(running)
    state = json.loads(json.dumps(running.get_state()))
    resumed = train(synthetic_clips)
    resumed.set_state(state)
    for _ in range(3):
        assert_equal(next(running), next(resumed))


class Killed(BaseException):
    """Like a kill: no handler for errors catches it."""


class Watched:
    """The pipeline's iterator, seen by a training loop; stops the loop after so many batches."""

    def __init__(self, batches, seen, limit):
        self._batches, self._seen, self._limit = batches, seen, limit
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self):
        if len(self._seen) == self._limit:
            raise Killed
        self._seen.append(next(self._batches))
        return self._seen[-1]


@pytest.mark.parametrize("limit", [4, 6])
def test_a_training_killed_and_resumed_sees_the_batches_of_one_that_was_not(
    synthetic_clips, tmp_path, limit
):
    """Checkpoints after steps 2, 4 and 6 hold the iterator's position as Orbax writes it."""

    def loss_fn(weights, stats, batch, rng):
        del rng
        loss = (weights["model"]["w"] * batch["joints"]).mean()
        return loss, (Figures(loss, {}, {}), stats)

    def phase(seen, limit):
        opt = optax.sgd(1e-3)
        return Phase(
            "dense",
            7,
            loss_fn,
            opt,
            lambda: create_state({"params": {"w": jnp.ones(())}}, {}, opt),
            lambda: Watched(train(synthetic_clips, normalized=False), seen, limit),
        )

    whole, before, after = [], [], []
    options = Options(checkpoint_every=2)
    expected = run(phase(whole, None), tmp_path / "whole", 0, options)
    with pytest.raises(Killed):
        run(phase(before, limit), tmp_path / "killed", 0, options)
    resume = dataclasses.replace(options, resume=True)
    state = run(phase(after, None), tmp_path / "killed", 0, resume)
    assert len(before) + len(after) >= len(whole) == 7
    for one, other in zip(before, whole[:limit], strict=True):
        assert_equal(one, other)
    for one, other in zip(after, whole[-len(after) :], strict=True):
        assert_equal(one, other)
    assert float(state.weights["model"]["w"]) == float(expected.weights["model"]["w"])


def test_an_epoch_shows_every_clip_once(synthetic_clips):
    """Without augmentation a whole clip is the same each time, and its joints tell which it is."""
    same = PoseAugmentation(scale=(1, 1), rotation=0, flip=0)
    iterator = train(synthetic_clips, batch=4, augmentation=same, length=10)
    epochs = [[next(iterator)["joints"].sum(axis=(1, 2, 3)) for _ in range(4)] for _ in range(2)]
    first, second = (np.concatenate(epoch) for epoch in epochs)
    assert len(np.unique(first)) == 16
    np.testing.assert_array_equal(np.sort(first), np.sort(second))
    assert (first != second).any()  # in another order
    assert steps_per_epoch(synthetic_clips, 4) == 4


def test_processes_share_out_the_samples_of_one(synthetic_clips):
    alone = train(synthetic_clips, batch=4)
    shares = [train(synthetic_clips, batch=2, process=(i, 2)) for i in (0, 1)]
    for _ in range(5):
        whole, parts = next(alone), [next(share) for share in shares]
        for key, value in whole.items():
            np.testing.assert_array_equal(value[:2], parts[0][key], err_msg=key)
            np.testing.assert_array_equal(value[2:], parts[1][key], err_msg=key)


def test_uint8_frames_are_the_float_ones_before_normalisation(synthetic_clips):
    raw, ready = next(train(synthetic_clips, normalized=False)), next(train(synthetic_clips))
    assert raw["frames"].dtype == np.uint8
    np.testing.assert_allclose(normalize(raw["frames"]), ready["frames"], atol=1e-6)


def test_flips_are_refused_where_colours_tell_sides(synthetic_clips):
    with pytest.raises(ValueError, match=r"`augmentation.flip`"):
        train(synthetic_clips, augmentation=PoseAugmentation())


def test_a_mirrored_real_clip_keeps_right_on_its_own_side(real_jhmdb):
    clips, _ = real_jhmdb.clips(real_jhmdb.names())
    settings = {"scale": (1, 1), "rotation": 0}
    plain, mirrored = (
        next(
            train(clips, batch=1, size=(96, 96), augmentation=PoseAugmentation(flip=p, **settings))
        )
        for p in (0, 1)
    )
    width = 95
    np.testing.assert_allclose(
        mirrored["joints"][..., 3, 0], width - plain["joints"][..., 4, 0], atol=1e-3
    )
    difference = denormalize(plain["frames"])[..., ::-1, :].astype(int) - denormalize(
        mirrored["frames"]
    )
    assert np.abs(difference).mean() < 1


def test_evaluation_shows_every_frame_once(synthetic_clips):
    for length, batch in ((4, 3), (None, 5), (10, 4)):
        seen = []
        shapes = set()
        for item in make_eval_iterator(synthetic_clips, batch=batch, length=length, size=SIZE):
            shapes.add(item["frames"].shape)
            real = item["valid"]
            assert (item["clip"][~real] == -1).all()
            seen += list(zip(item["clip"][real].tolist(), item["time"][real].tolist(), strict=True))
        expected = [(i, t) for i, clip in enumerate(synthetic_clips) for t in range(clip.length)]
        assert sorted(seen) == expected
        assert len(shapes) == 1


def test_evaluation_processes_have_equally_many_batches(synthetic_clips):
    counts, seen = [], []
    for i in range(3):
        items = list(
            make_eval_iterator(synthetic_clips, batch=2, length=8, size=SIZE, process=(i, 3))
        )
        counts.append(len(items))
        for item in items:
            seen += list(zip(item["clip"][item["valid"]], item["time"][item["valid"]], strict=True))
    assert len(set(counts)) == 1
    assert len(seen) == len(set(seen)) == 160


def test_the_inverse_affine_leads_from_crop_joints_to_the_file(synthetic_clips):
    item = next(make_eval_iterator(synthetic_clips, batch=2, size=SIZE))
    back = (
        np.einsum("btij,btkj->btki", item["inverse"][..., :2], item["joints"])
        + item["inverse"][:, :, None, :, 2]
    )
    np.testing.assert_allclose(back[1], synthetic_clips[1].joints, atol=2e-2)


@pytest.mark.parametrize("convention", ["extent", "pixels"])
def test_pck_of_an_estimate_is_the_same_in_crops(real_jhmdb, convention):
    """The real clip through the evaluation pipeline: sizes and scales carry both conventions."""
    clips, _ = real_jhmdb.clips(real_jhmdb.names())
    noise = np.random.default_rng(0).normal(scale=14, size=clips[0].joints.shape)
    source, crop = Pck(convention=convention), Pck(convention=convention)
    source.update(clips[0].joints + noise, clips[0].joints, clips[0].sizes)
    for item in make_eval_iterator(clips, batch=2, length=8, size=(96, 96)):
        moved = noise[item["time"]] * item["scale"][..., None, None]
        visible = item["visible"] & item["valid"][..., None]
        joints = item["joints"]
        crop.update(joints + moved, joints, item["size"], visible, item["scale"])
    np.testing.assert_array_equal(crop.counts, source.counts)
    np.testing.assert_array_equal(crop.hits, source.hits)
    assert 0.3 < source.result()["mean15"] < 0.98


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"batch": 0}, "batch"),
        ({"length": 0}, "length"),
        ({"length": 11}, "length"),
        ({"size": (64,)}, "size"),
        ({"process": (2, 2)}, "process"),
        ({"clips": []}, "clips"),
    ],
)
def test_bad_arguments_are_named(synthetic_clips, change, name):
    clips = change.pop("clips", synthetic_clips)
    with pytest.raises(ValueError, match=f"`{name}`"):
        train(clips, **change)
