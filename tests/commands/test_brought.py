"""`--onnx` in the commands: a small detector from file to annotated video, agreement and table."""

import dataclasses
import json

import cv2
import jax
import numpy as np
import pytest

pytest.importorskip("onnx")

from skipconv_jax import native
from skipconv_jax.commands import agreement, cli
from skipconv_jax.commands import calibrate as calibrating
from skipconv_jax.commands import fit as fitting
from skipconv_jax.commands import probe as probing
from skipconv_jax.commands.stream import Settings, stream
from skipconv_jax.streaming.sources import Source
from skipconv_jax.tasks.given.experiment import (
    configuration,
    from_onnx,
    given,
)
from skipconv_jax.tuning import Budget, GatePlan
from skipconv_jax.tuning.fit import Recipe
from tests.onnx.graphs import model, node

SIZE = (32, 64)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A file that finds bright squares, in FastestDet's layout: cells of 16, a class, a fixed size.

    Objectness and class are the mean brightness of a cell.
    """
    bright = np.full((2, 3, 16, 16), 1 / 768, np.float32)
    spread = np.zeros((85, 2, 1, 1), np.float32)
    spread[0, 0], spread[5 + 3, 1] = 1, 1
    nodes = [
        node("Conv", ["x", "bright.weight"], ["cells"], strides=[16, 16]),
        node("Conv", ["cells", "spread.weight"], ["y"]),
    ]
    weights = {"bright.weight": bright, "spread.weight": spread}
    path = tmp_path_factory.mktemp("onnx") / "squares.onnx"
    path.write_bytes(model(nodes, weights, (1, 3, "h", "w")).SerializeToString())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A folder of 8 frames: a white square that stays on its cell and then jumps to another."""
    folder = tmp_path_factory.mktemp("frames")
    for t in range(8):
        frame = np.zeros((*SIZE, 3), np.uint8)
        left = 16 if t < 5 else 32
        frame[:16, left : left + 16] = 255
        assert cv2.imwrite(str(folder / f"{t:02}.png"), frame)
    return folder


def _experiment(detector, threshold=1e-2):
    network = from_onnx(str(detector), SIZE)
    config = configuration(network, (None, threshold, 1))
    return given(network, "detection", "fastestdet", config), network


def test_streams_to_an_annotated_video(detector, video, tmp_path):
    experiment, network = _experiment(detector)
    params, _ = experiment.net().init(network.variables, experiment.frame())
    summary = stream(experiment, params, Source(str(video)), tmp_path, Settings(piece=4))
    rows = [json.loads(line) for line in (tmp_path / "frames.jsonl").read_text().splitlines()]
    assert [row["labels"] for row in rows] == [["motorcycle"]] * 8
    # Half of the frame's width and height around the middle of the cell's upper left corner.
    assert rows[0]["boxes"][0] == pytest.approx([0, 0, 32, 8], abs=0.5)
    assert rows[7]["boxes"][0] == pytest.approx([16, 0, 48, 8], abs=0.5)
    assert rows[0]["gmac"] > 0
    assert [row["gmac"] for row in rows[1:5]] == [0] * 4
    assert 0 < rows[5]["gmac"] < rows[0]["gmac"]
    assert summary["reduction"] > 4
    for name in ("annotated.mp4", "chart.png", "sheet.png"):
        assert (tmp_path / name).stat().st_size > 100


def test_agreement_falls_where_change_is_missed(detector, video):
    kept, missed = (
        agreement.compare(
            _experiment(detector, threshold)[0],
            {"model": from_onnx(str(detector), SIZE).variables, "gates": {}},
            Source(str(video)),
            0,
            0,
            "plain",
        )
        for threshold in (1e-2, 1e6)
    )
    assert kept.scores["ap"] == pytest.approx(1.0)
    assert kept.error == pytest.approx(0, abs=1e-6)
    assert kept.objects == kept.frames == 8
    assert 1 < kept.dense_gmac / kept.gmac < 8
    # Nothing but the first frame is computed: the three frames after the jump are wrong.
    assert missed.dense_gmac / missed.gmac == pytest.approx(8)
    assert missed.scores["ap"] < 0.7
    assert missed.worst > 1


def test_macs_of_a_file(detector, capsys):
    assert cli.main(["macs", "--onnx", str(detector), "--size", "32", "64"]) == 0
    assert "bright.weight" in capsys.readouterr().out
    assert cli.main(["macs", "--onnx", str(detector)]) == 2
    assert "leaves axis 2 ('h'), 3 ('w') free" in capsys.readouterr().err


def test_tasks_and_presets_that_do_not_fit(detector):
    network = from_onnx(str(detector), SIZE)
    config = configuration(network)
    with pytest.raises(ValueError, match="must be one of detection, raw"):
        given(network, "depth", None, config)
    with pytest.raises(ValueError, match="must be given for detection"):
        given(network, "detection", None, config)
    with pytest.raises(ValueError, match="must be given for detection, and not for 'raw'"):
        given(network, "raw", "yolox", config)


@pytest.mark.skipif(not native.available(), reason="the native engine is not built")
def test_profile_shows_operations_and_draws_them(detector, video, tmp_path, capsys):
    picture = tmp_path / "out" / "timeline.png"
    given = ["profile", "--onnx", str(detector), "--size", *map(str, SIZE), "--frames", "3"]
    given += ["--preset", "fastestdet", "--video", str(video), "--out", str(picture)]
    assert cli.main(given) == 0
    text = capsys.readouterr().out
    assert "direct 16x16 /16" in text
    assert "3 frames of" in text
    assert cv2.imread(str(picture)).shape[2] == 3
    assert cli.main([*given[:6], "--frames", "0"]) == 2
    assert "`frames` (=0)" in capsys.readouterr().err


def test_probe_and_measured_calibration_of_a_file(detector, video, tmp_path):
    experiment, network = _experiment(detector)
    settings = probing.Settings(8, 0, (1e-2, 1e6), 1, "closed_loop")
    found = probing.look(experiment, network.variables, Source(str(video)), settings)
    assert [row.threshold for row in found.rows] == [1e-2, 1e6]
    # Nothing recomputed: the square is still seen where it was.
    assert found.rows[0].loss == pytest.approx(0, abs=1e-5)
    assert found.rows[1].loss > 0.5
    assert found.rows[0].agreement == pytest.approx(1)
    assert found.best is not None
    assert found.best.threshold == 1e-2
    assert "everything computed" in probing.report(found)
    late = probing.Settings(8, 7, (1e-2,), 1, "closed_loop")
    with pytest.raises(ValueError, match="at least two frames"):
        probing.look(experiment, network.variables, Source(str(video)), late)
    wanted = calibrating.Settings(
        Budget("drop", 0.5), str(video), "closed_loop", "input_norm", (1,), 4, 1, False,
        method="measured",
    )  # fmt: skip
    plan = calibrating.find_gate_plan(experiment, network.variables, wanted)
    assert plan.note("calibration")["drop"] <= 0.5
    assert "fewer multiply-accumulates than one threshold" in calibrating.report(plan)
    calibrating.picture(plan, tmp_path / "sweep.png")
    assert cv2.imread(str(tmp_path / "sweep.png")).shape[0] > 100


def test_boxes_disagree_where_something_is_seen(detector):
    experiment, _ = _experiment(detector)
    # One cell sees a motorcycle; all others see nothing.
    dense = np.zeros((1, 85, 2, 4), np.float32)
    dense[0, [0, 8], 0, 1] = 1
    error, scale = experiment.disagreement(dense, dense)
    np.testing.assert_allclose(scale, [1], rtol=1e-5)
    np.testing.assert_allclose(error, [0], atol=1e-4)
    background = dense.copy()
    background[0, 1:5, 1, 3] = 3.0
    np.testing.assert_allclose(experiment.disagreement(background, dense)[0], [0], atol=1e-4)
    gone, other = np.zeros_like(dense), dense.copy()
    other[0, [8, 9], 0, 1] = [0, 1]
    moved = dense.copy()
    moved[0, 1, 0, 1] = 5.0
    for outputs, wanted in ((gone, 1.0), (other, 2.0)):
        got, _ = experiment.disagreement(outputs, dense)
        assert float(got[0]) == pytest.approx(wanted, abs=0.05)
    assert 0.1 < float(experiment.disagreement(moved, dense)[0][0]) < 1
    slope = jax.grad(lambda y: experiment.disagreement(y, dense)[0].sum())(0.9 * dense)
    assert np.isfinite(slope).all()
    assert slope[0, 0, 0, 1] < 0


def test_gates_are_fitted_to_a_video_and_run_from_their_plan(detector, video, tmp_path):
    experiment, network = _experiment(detector)
    recipe = Recipe((0.0, 0.5), steps=2, clip_length=2, block=1, threshold=1e-2)
    source, settings = Source(str(video)), fitting.Settings(6, 0, 2, "closed_loop")
    rows, seconds = fitting.run(experiment, network.variables, source, recipe, settings, tmp_path)
    assert [row.beta for row in rows] == [0.0, 0.5]
    # The two frames that follow are alike: nothing is computed, nothing is lost.
    assert [row.share for row in rows] == [0, 0]
    assert rows[0].loss == pytest.approx(0, abs=1e-5)
    assert rows[0].agreement == pytest.approx(1)
    assert 0 < rows[0].gates < 0.6
    assert "beta0.5.json" in fitting.report(rows, seconds)
    plan = GatePlan.load(rows[1].path)
    config = configuration(network)
    config.skip.gate_plan = str(rows[1].path)
    again = given(network, "detection", "fastestdet", config)
    weights = {"model": network.variables, "gates": plan.params()}
    found = agreement.compare(again, weights, source, 0, 0)
    # The square jumps once, which the gates see, and stands still else.
    assert found.scores["ap"] == pytest.approx(1.0)
    assert found.dense_gmac / found.gmac > 2
    many = fitting.Settings(60, 0, 2, "closed_loop")
    with pytest.raises(ValueError, match="must have 62 frames"):
        fitting.run(experiment, network.variables, source, recipe, many, tmp_path)
    joint = dataclasses.replace(recipe, joint=0.1)
    with pytest.raises(ValueError, match="joint"):
        fitting.run(experiment, network.variables, source, joint, settings, tmp_path)
