"""calibrate.py's part between the flags and the method: frames, scores, report, exit code."""

import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.calibration import Budget, Plan
from skipconv_jax.commands.calibrate import Settings, find_plan, report
from skipconv_jax.tasks.pose import PoseTask


class _Experiment:
    """What calibration asks of an experiment, with two convolutions for a network."""

    size = (32, 32)
    task = PoseTask()

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
        "policy": "reference",
        "norm": "input_norm",
        "blocks": (2, 4),
        "frames": 32,
        "streams": 1,
        "labels": False,
    }
    return Settings(**{**options, **changes})


def test_a_folder_of_images_gives_a_plan(variables, folder, tmp_path):
    plan = find_plan(_Experiment(), variables, _settings(folder, Budget("macs", 60_000.0)))
    assert plan.policy == "reference"
    assert plan.note("calibration")["macs"] <= 60_000
    assert 0 <= plan.note("held_out")["drop"] <= 1
    assert {name for name, _ in plan.layers} == {"stem", "head"}
    text = report(plan)
    assert "held out" in text
    assert "2 dense passes" in text
    plan.save(tmp_path / "plan.json")
    assert report(Plan.load(tmp_path / "plan.json")) == text


def test_labels_need_a_data_set(variables, folder):
    with pytest.raises(ValueError, match="a video has none"):
        find_plan(_Experiment(), variables, _settings(folder, Budget("drop", 0.1), labels=True))


def test_a_clip_must_have_frames(variables, tmp_path):
    cv2.imwrite(str(tmp_path / "one.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="at least 4 frames"):
        find_plan(_Experiment(), variables, _settings(tmp_path, Budget("drop", 0.1)))


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
