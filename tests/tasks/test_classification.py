"""Classification: sampling, crops, losses, top-1, TSN, the paper's costs, a tiny run end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from skipconv_jax import config as configs
from skipconv_jax.commands.evaluate import evaluate_dense, evaluate_skipped, report
from skipconv_jax.data import synthetic_pose
from skipconv_jax.data.actions import (
    make_eval_iterator,
    make_train_iterator,
    resize_and_crop,
    segment_indices,
)
from skipconv_jax.models import ResNet, init_variables
from skipconv_jax.models.convert import save_state, to_torch
from skipconv_jax.models.tsn import TSN, consensus
from skipconv_jax.tasks import build
from skipconv_jax.tasks.classification import ClassificationTask, Top1
from skipconv_jax.training.loop import Options, run

SMALL = ResNet((1, 1), bottleneck=False, classes=4, width=4)


@pytest.fixture(scope="module")
def config(repository, tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    scene = synthetic_pose.Scene(height=48, width=64, frames=5, distractors=0)
    synthetic_pose.generate(root, 20, scene, workers=1)
    config = configs.load(str(repository / "configs/tsn_synthetic.py"))
    config.data.update({"root": str(root), "short_side": 40})
    config.input.update({"height": 32, "width": 32})
    config.model = ConfigDict(
        {"name": "resnet", "depths": (1, 1), "bottleneck": False, "classes": 4, "width": 4}
    )
    config.dense.update({"steps": 2, "batch": 2, "clip_length": 2})
    config.gated.update({"steps": 2, "batch": 1, "clip_length": 2})
    config.eval.batch = 3
    return config


@pytest.mark.parametrize(
    ("length", "segments", "expected"),
    [
        (25, 25, list(range(25))),
        (40, 4, [5, 15, 25, 35]),
        (15, 6, [1, 3, 6, 8, 11, 13]),
        (2, 4, [0, 0, 1, 1]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_segment_middles(length, segments, expected):
    assert segment_indices(length, segments).tolist() == expected


def test_random_segments_stay_in_their_segment():
    rng = np.random.default_rng(0)
    draws = np.stack([segment_indices(40, 4, rng) for _ in range(200)])
    assert (draws // 10 == np.arange(4)).all()
    assert len(np.unique(draws[:, 1])) == 10
    with pytest.raises(ValueError, match="`segments`"):
        segment_indices(5, 0)


def test_centre_crop():
    rows, columns = np.arange(12, dtype=np.uint8), np.arange(16, dtype=np.uint8)
    frame = np.stack([rows[:, None] + 0 * columns, columns + 0 * rows[:, None],
                      0 * rows[:, None] + 0 * columns], axis=-1)  # fmt: skip
    crop = resize_and_crop(frame[None], (8, 8), 12)[0]
    # 12 stays 12; the middle 8 of 12 rows and of 16 columns.
    np.testing.assert_array_equal(crop, frame[2:10, 4:12])
    mirrored = resize_and_crop(frame[None], (8, 8), 12, (0.0, 1.0), mirrored=True)[0]
    np.testing.assert_array_equal(mirrored, frame[:8, 8:][:, ::-1])
    assert resize_and_crop(frame[None], (24, 20), 24).shape == (1, 24, 20, 3)
    with pytest.raises(ValueError, match="must not exceed"):
        resize_and_crop(frame[None], (16, 8), 12)


def test_loss_bounds_that_of_the_consensus():
    logits = jax.random.normal(jax.random.key(0), (3, 5, 4)) * 3
    label = jnp.asarray([[0] * 5, [3] * 5, [1] * 5], jnp.int32)
    task = ClassificationTask(4)
    loss = task.losses(logits, {"label": label})["cross_entropy"]
    chances = jax.nn.softmax(logits, -1)
    by_hand = -np.log(np.take_along_axis(np.asarray(chances), np.asarray(label)[..., None], -1))
    np.testing.assert_allclose(loss, by_hand.mean(), rtol=1e-5)
    together = task.losses(consensus(logits), {"label": label[:, 0]})["cross_entropy"]
    assert float(together) < float(loss)
    with pytest.raises(ValueError, match="4 classes"):
        task.losses(logits[..., :3], {"label": label})


def test_top1():
    top1 = Top1(3)
    logits = np.array([[3.0, 1, 0], [0, 1, 3], [0, 3, 1], [np.nan, 9, 9]])
    top1.update(logits, [0, 0, 1, 1])
    top1.update(logits[:2], [0, 2], valid=[False, True])
    assert top1.result() == {
        "top1": pytest.approx(3 / 5),
        "mean_class": pytest.approx((1 / 2 + 1 / 2 + 1) / 3),
    }
    with pytest.raises(ValueError, match="must have shapes"):
        top1.update(logits, [0])


def test_tsn_is_the_backbone_averaged():
    clips = jax.random.normal(jax.random.key(0), (2, 3, 32, 32, 3))
    variables = init_variables(SMALL, jax.random.key(1), clips[:, 0])
    tsn = TSN(SMALL)
    same = jax.eval_shape(tsn.init, jax.random.key(0), clips)
    assert jax.tree.structure(same) == jax.tree.structure(variables)
    y = jax.jit(tsn.apply)(variables, clips)
    frames = jax.jit(SMALL.apply)(variables, clips.reshape(6, 32, 32, 3)).reshape(2, 3, 4)
    np.testing.assert_allclose(y, frames.mean(1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"x\[:, None\]"):
        jax.eval_shape(tsn.init, jax.random.key(0), clips[:, 0])


@pytest.mark.parametrize(("segments", "gmac"), [(25, 194.98), (6, 46.80)])
def test_cost_of_the_paper_s_videos(repository, segments, gmac):
    config = configs.load(str(repository / "configs/tsn_jhmdb.py"))
    assert segments in config.eval.segments
    table = build(config).table()
    assert segments * table.macs / 1e9 == pytest.approx(gmac, abs=0.01)
    assert len(table.skipped()) == len(table.rows) == 104


def test_batches(config):
    experiment = build(config)
    names, test = experiment.names(), experiment.clips("test")
    assert names == ["squat", "stand", "walk", "wave"]
    batches = list(
        make_eval_iterator(test, names, batch=3, segments=4, size=(32, 32), short_side=40)
    )
    assert sum(int(b["valid"][:, 0].sum()) for b in batches) == len(test)
    for b in batches:
        assert b["frames"].shape == (3, 4, 32, 32, 3)
        assert b["frames"].dtype == np.uint8
        assert (b["label"] == b["label"][:, :1]).all()
    labels = np.concatenate([b["label"][:, 0][b["valid"][:, 0]] for b in batches])
    assert [names[i] for i in labels] == [clip.action for clip in test]

    def make():
        return make_train_iterator(
            test, names, batch=2, segments=3, size=(32, 32), short_side=40, seed=1
        )

    one, two = make(), make()
    first, position = next(one), one.get_state()
    second = next(one)
    two.set_state(position)
    np.testing.assert_array_equal(next(two)["frames"], second["frames"])
    assert not np.array_equal(first["frames"], second["frames"])
    with pytest.raises(ValueError, match="unknown"):
        make_train_iterator(test, names[:2], batch=2, segments=3)


def test_trains_and_evaluates(config, tmp_path):
    experiment = build(config)
    options = Options(log_every=1, checkpoint_every=2)
    with jax.numpy_dtype_promotion("standard"):
        for name in ("dense", "gated"):
            state = run(experiment.phase(name, tmp_path), tmp_path, 0, options)
            assert int(state.step) == 2
    clips = experiment.clips("test")
    dense = evaluate_dense(experiment, state.variables, clips, "dense", 3)
    params = {"model": state.variables, "gates": state.weights["gates"]}
    skipped = evaluate_skipped(experiment, params, clips, "skipped", 3)
    assert dense.frames == skipped.frames == 3 * len(clips)
    assert "GMAC/video" in report(experiment, [dense, skipped])
    assert 0 < skipped.gmac <= dense.gmac == pytest.approx(skipped.dense_gmac)
    assert 0 <= dense.scores["top1"] <= 1
    assert skipped.gate_gmac > 0


def test_starts_from_a_torchvision_checkpoint(config, tmp_path):
    path = tmp_path / "public.safetensors"
    other = ResNet((1, 1), bottleneck=False, classes=9, width=4)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    public = init_variables(other, jax.random.key(5), x)
    save_state(to_torch(public), path)
    config = config.copy_and_resolve_references()
    config.init_from = str(path)
    taken = build(config).initial_variables()
    np.testing.assert_array_equal(
        taken["params"]["conv1"]["kernel"], public["params"]["conv1"]["kernel"]
    )
    assert taken["params"]["fc"]["kernel"].shape[-1] == 4


def test_refuses_other_tasks_and_models(config):
    other = config.copy_and_resolve_references()
    other.task = "segmentation"
    with pytest.raises(ValueError, match=r"`config.task` \(='segmentation'\)"):
        build(other)
    other.task, other.model.name = "classification", "vgg"
    with pytest.raises(ValueError, match=r"`config.model.name` \(='vgg'\)"):
        build(other)
