"""calibrate.py's part between the flags and the method: frames, scores, report, exit code."""

import dataclasses
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import config as configs
from skipconv_jax.commands.calibrate import (
    Settings,
    agreement,
    find_gate_plan,
    first_frames,
    judge,
    report,
)
from skipconv_jax.data.synthetic_pose import Scene, generate
from skipconv_jax.tasks.detection import DetectionTask, Predictions
from skipconv_jax.tasks.detection.experiment import DetectionExperiment
from skipconv_jax.tasks.pose import PoseTask
from skipconv_jax.tasks.pose.experiment import PoseExperiment
from skipconv_jax.tuning import Budget, GatePlan


@dataclasses.dataclass(frozen=True)
class _Experiment(PoseExperiment):
    """Two convolutions for a network."""

    def predict(self, variables, frames):
        x = frames.astype(jnp.float32) / 255
        for name, stride in (("stem", 4), ("head", 1)):
            x = jax.lax.conv_general_dilated(
                x,
                variables[name],
                (stride, stride),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        return x


def _experiment(root="nowhere", side=32):
    config = configs.base("pose")
    config.input.update({"height": side, "width": side})
    config.data.root = str(root)
    return _Experiment(config, None, PoseTask())


@pytest.fixture
def variables():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "stem": jax.random.normal(keys[0], (3, 3, 3, 4)),
        "head": jax.random.normal(keys[1], (3, 3, 4, 15)),
    }


@pytest.fixture
def folder(tmp_path):
    """Twelve images: a bright square wanders over still noise."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 120, (48, 64, 3)).astype(np.uint8)
    for t in range(12):
        image = scene.copy()
        image[10:26, 4 * t : 4 * t + 16] = 220
        cv2.imwrite(str(tmp_path / f"frame{t}.png"), image)
    return tmp_path


def _settings(folder, budget, **changes):
    options = {
        "budget": budget,
        "clip": str(folder),
        "policy": "closed_loop",
        "norm": "input_norm",
        "blocks": (2, 4),
        "frames": 32,
        "streams": 1,
        "labels": False,
    }
    return Settings(**{**options, **changes})


def test_a_folder_of_images_gives_a_plan(variables, folder, tmp_path):
    plan = find_gate_plan(_experiment(), variables, _settings(folder, Budget("macs", 60_000.0)))
    assert plan.policy == "closed_loop"
    assert plan.note("calibration")["macs"] <= 60_000
    assert 0 <= plan.note("held_out")["drop"] <= 1
    assert {name for name, _ in plan.layers} == {"stem", "head"}
    text = report(plan)
    assert "held out" in text
    assert "2 dense passes" in text
    plan.save(tmp_path / "plan.json")
    assert report(GatePlan.load(tmp_path / "plan.json")) == text


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """Sixteen clips of six frames, a quarter of them test data."""
    root = tmp_path_factory.mktemp("clips")
    generate(root, 16, Scene(48, 64, frames=6, distractors=1), seed=1)
    return root


def test_the_first_frames_of_clips(data_set):
    experiment = _experiment(data_set)
    two = first_frames(experiment, "train", 4, 2)
    assert two.images.shape == (4, 2, 32, 32, 3)
    np.testing.assert_array_equal(two.labels["time"], np.arange(4)[:, None].repeat(2, 1))
    np.testing.assert_array_equal(two.labels["clip"], [[0, 1]] * 4)
    later = first_frames(experiment, "train", 99, 1, skip=1)
    assert len(later.images) == 6
    np.testing.assert_array_equal(later.images[:4], two.images[:, 1:])
    with pytest.raises(ValueError, match="must leave clips"):
        first_frames(experiment, "train", 4, 1, skip=99)


@pytest.mark.parametrize("labels", [False, True])
def test_a_data_set_gives_a_plan(variables, data_set, labels):
    settings = _settings(data_set, Budget("drop", 0.5), labels=labels, frames=6, streams=2)
    plan = find_gate_plan(_experiment(), variables, settings)
    assert plan.note("calibration")["drop"] <= 0.5
    assert plan.note("held_out")["macs"] > 0


def test_joints_agree_within_a_twentieth_of_the_frame():
    experiment = _experiment(side=128)  # heatmaps of a quarter: a position is 4 of 128 pixels
    maps = np.zeros((2, 1, 32, 32, 15), np.float32)
    maps[:, :, 10, 10] = 1.0
    near, far = np.roll(maps, 1, axis=2), np.roll(maps, 3, axis=2)
    half = np.concatenate([maps[:1], far[1:]])
    score = agreement(experiment)
    assert [score(m, maps) for m in (maps, near, half, far)] == [1.0, 1.0, 0.5, 0.0]


def test_detections_agree_with_what_the_dense_network_is_sure_of():
    config = configs.base("detection")
    experiment = DetectionExperiment(config, None, DetectionTask((64, 64)))
    boxes = np.array([[4, 4, 24, 24], [30, 30, 60, 60], [0, 0, 9, 9]], np.float32)
    dense = Predictions(
        boxes[None, None], np.array([[[0.9, 0.8, 0.1]]], np.float32), np.zeros((1, 1, 3), np.int32)
    )
    truth = experiment.answers(dense)
    np.testing.assert_array_equal(truth["labels"], [[[0, 0, -1]]])
    assert judge(experiment, dense, truth) == pytest.approx(1.0)
    one = Predictions(dense.boxes[..., 1:2, :], dense.scores[..., 1:2], dense.labels[..., 1:2])
    assert 0.4 < judge(experiment, one, truth) < 0.6
    moved = dense._replace(boxes=dense.boxes + 40)
    assert judge(experiment, moved, truth) < 0.1


def test_labels_need_a_data_set(variables, folder):
    with pytest.raises(ValueError, match="a video has none"):
        find_gate_plan(
            _experiment(), variables, _settings(folder, Budget("drop", 0.1), labels=True)
        )


def test_a_clip_must_have_frames(variables, tmp_path):
    cv2.imwrite(str(tmp_path / "one.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="at least 4 frames"):
        find_gate_plan(_experiment(), variables, _settings(tmp_path, Budget("drop", 0.1)))


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "--config is missing"),
        (["--config=configs/hrnet_synthetic.py"], 1, "`budget` (=None)"),
        (["--config=configs/hrnet_synthetic.py", "--budget=drop=1", "--blocks=x"], 1, "`blocks`"),
    ],
)
def test_bad_flags(repository, flags, code, message):
    run = subprocess.run(
        [sys.executable, "calibrate.py", *flags],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == code
    assert message in run.stderr
