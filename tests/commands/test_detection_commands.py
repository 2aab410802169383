"""The commands on a tiny detector: train, evaluate, stream."""

import json

import cv2
import jax
import numpy as np
import pytest

from skipconv_jax import config as configs
from skipconv_jax.commands import common
from skipconv_jax.commands.baselines import evaluate_baseline
from skipconv_jax.commands.evaluate import evaluate_dense, evaluate_skipped, report, with_gates
from skipconv_jax.commands.stream import Settings, stream
from skipconv_jax.commands.train import train
from skipconv_jax.config import set_gate
from skipconv_jax.data.synthetic_traffic import TrafficScene, generate
from skipconv_jax.streaming.sources import Source
from skipconv_jax.tasks import build


@pytest.fixture(scope="module")
def config(repository, tmp_path_factory):
    root = tmp_path_factory.mktemp("traffic")
    generate(root, 4, TrafficScene(height=64, width=96, frames=6), seed=3, workers=1)
    config = configs.load(str(repository / "configs/efficientdet_synthetic.py:tiny"))
    config.data.root = str(root)
    config.input.update({"height": 32, "width": 64})
    config.model.update({"width": 0.1, "depth": 0.1, "features": 8})
    # Most layers dense: compiling is what takes the time.
    config.skip.rules = (("*/se/*", None), ("backbone/blocks/[1-6]/*", None), ("*net/*", None),
                         *config.skip.rules[1:])  # fmt: skip
    config.dense.update({"steps": 2, "batch": 2, "warmup": 0})
    config.eval.update({"batch": 2, "reset_every": 3})
    config.log_every = 1
    return config


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    with jax.numpy_dtype_promotion("standard"):
        train(config, workdir, ("dense",))
    return workdir


def test_a_detector_is_evaluated_dense_skipped_and_interleaved(config, trained):
    experiment = build(config)
    videos = experiment.clips("test")
    _, dense = common.load_weights(experiment, trained / "dense")
    plain = evaluate_dense(experiment, dense["model"], videos, "dense")
    assert plain.frames == sum(videos.lengths)
    always = build(set_gate(config, "always", None, 2))
    exact = evaluate_skipped(always, dense, videos, "always")
    assert exact.scores == pytest.approx(plain.scores, nan_ok=True, abs=1e-3)
    assert exact.gmac == pytest.approx(plain.gmac, rel=1e-5)
    copied = evaluate_baseline(experiment, dense, trained, videos, "interleaved", 3)
    assert copied.frames == plain.frames
    # Pieces of three frames, one of which is a key frame.
    assert copied.gmac == pytest.approx(plain.gmac / 3, rel=1e-5)
    assert "AP@[.5:.95]" in report(experiment, [plain, exact, copied])
    with pytest.raises(ValueError, match="must hold the trained phase 'dense'"):
        experiment.phase("gated", trained / "elsewhere").initial()


def test_baselines_are_for_detectors(repository):
    pose = build(configs.load(str(repository / "configs/hrnet_synthetic.py")))
    with pytest.raises(ValueError, match="must be left out for the task 'pose'"):
        evaluate_baseline(pose, {}, repository, [], "interleaved", 3)


def test_a_stream_of_a_detector_reports_and_draws_boxes(config, trained, tmp_path):
    experiment = build(set_gate(config, "input_norm", 0.05, 2))
    _, weights = common.load_weights(experiment, trained / "dense")
    folder = next(experiment.root().glob("Insight*Test/MVI*"))
    settings = Settings(piece=3, min_score=0.0)
    params = with_gates(experiment, weights)
    summary = stream(experiment, params, Source(folder), tmp_path, settings)
    rows = [json.loads(line) for line in (tmp_path / "frames.jsonl").read_text().splitlines()]
    assert summary["frames"] == len(rows) == 6
    boxes = np.asarray(rows[0]["boxes"])
    assert boxes.shape[1] == 4
    assert set(rows[0]["labels"]) == {"vehicle"}
    assert len(rows[0]["scores"]) == len(boxes)
    # In pixels of the frame, inside of it.
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 96
    assert boxes[:, 3].max() <= 64
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None
    with pytest.raises(ValueError, match="looks at whole frames"):
        stream(experiment, params, Source(folder), tmp_path, Settings(box=(0, 0, 9, 9)))
