"""The commands end to end on a tiny network: train, evaluate, stream, and every clear error."""

import json

import chex
import cv2
import jax
import numpy as np
import pytest

from skipconv_jax.commands import common
from skipconv_jax.commands.evaluate import (
    Result,
    evaluate_dense,
    evaluate_skipped,
    make_skipped,
    report,
    split_report,
    with_gates,
    write,
)
from skipconv_jax.commands.stream import NetworkStream, Settings, stream
from skipconv_jax.commands.train import train
from skipconv_jax.config import set_gate
from skipconv_jax.streaming.sources import Source, VideoError
from skipconv_jax.tasks import build
from tests.commands.conftest import tiny_config


def _rows(folder):
    return [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]


def test_training_leaves_both_phases(trained):
    config, workdir = trained
    for phase, steps in (("dense", 4), ("gated", 3)):
        lines = (workdir / phase / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, steps + 1))
    _, dense = common.load_weights(build(config), workdir / "dense")
    _, gated = common.load_weights(build(config), workdir / "gated")
    assert not dense["gates"]
    assert set(gated["gates"]) == {r.name for r in build(config).table().skipped()}
    # Frozen statistics are the dense phase's.
    chex.assert_trees_all_equal(dense["model"]["batch_stats"], gated["model"]["batch_stats"])


def test_resuming_with_another_configuration_is_refused(trained):
    config, workdir = trained
    changed = config.copy_and_resolve_references()
    changed.gated.beta = 0.5
    with pytest.raises(ValueError, match=r"gated\.beta: 0\.0008 -> 0\.5"):
        train(changed, workdir, resume=True)


def test_gates_that_always_fire_reach_what_the_dense_network_reaches(trained, tmp_path):
    config, workdir = trained
    experiment = build(config)
    clips = experiment.clips("test")
    _, weights = common.load_weights(experiment, workdir / "dense")
    dense = evaluate_dense(experiment, weights["model"], clips, "dense")
    always = build(set_gate(config, "always", None, 2))
    skipped = evaluate_skipped(always, {**weights, "gates": {}}, clips, "always")
    assert skipped.scores == pytest.approx(dense.scores, nan_ok=True)
    assert skipped.frames == dense.frames == sum(clip.length for clip in clips)
    assert skipped.gmac == pytest.approx(dense.dense_gmac, rel=1e-5)
    table = report(experiment, [dense, skipped])
    assert all(len(line) == len(table.splitlines()[0]) for line in table.splitlines())
    write(experiment, [dense, skipped], config, tmp_path)
    saved = json.loads((tmp_path / "eval.json").read_text())
    assert saved["results"][1]["reduction"] == pytest.approx(1.0, rel=1e-4)


def test_trained_gates_spend_what_their_masks_say(trained):
    config, workdir = trained
    experiment = build(config)
    _, weights = common.load_weights(experiment, workdir / "gated")
    result = evaluate_skipped(experiment, weights, experiment.clips("test"), "gated")
    stages = experiment.table().stages()
    by_stage = sum(result.firing[stage] * macs for stage, macs in stages.items()) / 1e9
    assert result.gmac == pytest.approx(by_stage, rel=1e-4)
    assert result.firing["stage3"] == pytest.approx(1.0)
    assert result.gate_gmac > 0


def test_gates_plan_and_table_of_a_stream_share_one_trace(trained, monkeypatch):
    config, workdir = trained
    experiment = build(config)
    _, weights = common.load_weights(experiment, workdir / "gated")
    traces, forward = [], type(experiment).predict

    def predict(self, variables, frames):
        traces.append(frames.shape)
        return forward(self, variables, frames)

    monkeypatch.setattr(type(experiment), "predict", predict)
    network = NetworkStream(experiment, with_gates(experiment, weights), Settings(piece=4))
    assert network.table.skipped()
    make_skipped(experiment, weights)
    assert traces == [(1, *experiment.size, 3), (config.eval.batch, *experiment.size, 3)]


def test_streaming_a_folder_writes_every_output(trained, data, tmp_path):
    config, workdir = trained
    experiment = build(config)
    _, weights = common.load_weights(experiment, workdir / "gated")
    clip = experiment.clips("test")[0].name
    source = Source(data / "Rename_Images" / clip)
    params = with_gates(experiment, weights)
    summary = stream(experiment, params, source, tmp_path, Settings(piece=4))
    assert summary["frames"] == 6
    rows = _rows(tmp_path)
    assert [row["frame"] for row in rows] == list(range(6))
    assert rows[0]["gmac"] == pytest.approx(summary["dense_gmac"], rel=1e-5)
    assert list(rows[0]["firing"]) == list(experiment.table().stages())
    assert np.asarray(rows[0]["joints"]).shape == (15, 2)
    assert len(list(Source(tmp_path / "annotated.mp4"))) == 6
    for name in ("chart.png", "sheet.png"):
        assert cv2.imread(str(tmp_path / name)) is not None

    # Pieces are no part of the result.
    stream(experiment, params, source, tmp_path / "whole", Settings(piece=6))
    for one, other in zip(rows, _rows(tmp_path / "whole"), strict=True):
        np.testing.assert_allclose(one["joints"], other["joints"], atol=0.02)
        assert one["gmac"] == pytest.approx(other["gmac"], rel=1e-5)


@pytest.fixture
def damaged(tmp_path):
    """Ten frames: 3 is no image, 6 and later have another size."""
    rng = np.random.default_rng(0)
    small, large = (rng.integers(0, 255, (n, n, 3), np.uint8) for n in (64, 80))
    folder = tmp_path / "frames"
    folder.mkdir()
    for t in range(10):
        cv2.imwrite(str(folder / f"{t}.png"), small if t < 6 else large)
    (folder / "3.png").write_bytes(b"broken")
    return folder


def test_damage_and_size_changes_are_reported_resets(trained, damaged, tmp_path):
    config, workdir = trained
    experiment = build(set_gate(config, "input_norm", 0.01, 2))
    _, weights = common.load_weights(experiment, workdir / "dense")
    params = with_gates(experiment, weights)
    summary = stream(experiment, params, Source(damaged), tmp_path / "out", Settings(piece=4))
    rows = _rows(tmp_path / "out")
    assert rows[3] == {"frame": 3, "error": "3.png is no readable image"}
    resets = {row["frame"]: row["reset"] for row in rows if "reset" in row}
    assert resets == {
        4: "3.png is no readable image",
        6: "frame size changed from 64x64 to 80x80",
    }
    assert (summary["frames"], summary["lost_frames"], summary["resets"]) == (9, 1, 2)
    whole = summary["dense_gmac"]
    full = [row["frame"] for row in rows if "gmac" in row and row["gmac"] > 0.999 * whole]
    assert full == [0, 4, 6], "a repeated frame costs less, a reset one everything"


def test_periodic_reference_frames(trained, damaged, tmp_path):
    config, workdir = trained
    experiment = build(set_gate(config, "input_norm", 0.01, 2))
    _, weights = common.load_weights(experiment, workdir / "dense")
    settings = Settings(piece=4, reset_every=2, max_frames=3)
    stream(experiment, with_gates(experiment, weights), Source(damaged), tmp_path / "out", settings)
    cost = [row["gmac"] for row in _rows(tmp_path / "out")]
    assert cost[0] == pytest.approx(cost[2])
    assert cost[1] < cost[0]


def test_a_source_without_a_good_frame_is_an_error(trained, tmp_path):
    config, workdir = trained
    (tmp_path / "0.png").write_bytes(b"broken")
    experiment = build(set_gate(config, "always", None, 2))
    _, weights = common.load_weights(experiment, workdir / "dense")
    params = with_gates(experiment, {**weights, "gates": {}})
    with pytest.raises(VideoError, match="must hold a frame that decodes; none of 1 did"):
        stream(experiment, params, Source(tmp_path), tmp_path / "out", Settings(piece=2))


def test_gates_must_be_trained_or_need_no_training(trained):
    config, workdir = trained
    experiment = build(config)
    _, dense = common.load_weights(experiment, workdir / "dense")
    with pytest.raises(ValueError, match="run with --gate=input_norm"):
        with_gates(experiment, dense)
    _, gated = common.load_weights(experiment, workdir / "gated")
    changed = config.copy_and_resolve_references()
    changed.skip.rules = ()
    with pytest.raises(ValueError, match="use the config it was trained with"):
        with_gates(build(changed), gated)


def test_public_checkpoints_are_read(trained, tmp_path):
    from skipconv_jax.models.convert import save_state, to_torch

    config, _ = trained
    experiment = build(config)
    variables = experiment.variables(seed=3)
    save_state(to_torch(variables), tmp_path / "hrnet.safetensors")
    label, weights = common.load_weights(experiment, tmp_path / "hrnet.safetensors")
    assert label == "hrnet"
    chex.assert_trees_all_equal(weights["model"], jax.tree.map(np.asarray, variables))

    config = config.copy_and_resolve_references()
    config.init_from = str(tmp_path / "hrnet.safetensors")
    chex.assert_trees_all_equal(build(config).initial_variables(), variables)


def test_missing_data_says_what_to_do(tmp_path):
    config = tiny_config(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"must hold the data\. Write it with `python -m"):
        train(config, tmp_path / "run")


def test_missing_weights_say_what_to_do(trained, tmp_path):
    config, _ = trained
    with pytest.raises(ValueError, match="train first with"):
        common.load_weights(build(config), tmp_path)
    with pytest.raises(ValueError, match="must hold a trained phase"):
        common.newest_phase(tmp_path)


def test_three_splits_are_rows_and_their_mean(trained):
    experiment = build(trained[0])

    def result(how, pck, gmac):
        scores = {key: pck for key, _ in experiment.figures}
        return Result(f"x@1 {how}", scores, gmac, 1.0, 0.25, {}, 8)

    found = {n: [result("dense", n / 4, 1.0), result("skipped", n / 8, n / 4)] for n in (1, 2, 3)}
    text, saved = split_report(experiment, found)
    assert list(saved) == ["dense", "skipped"]
    assert list(saved["skipped"]) == ["split 1", "split 2", "split 3", "mean"]
    assert saved["skipped"]["mean"]["mean15"] == pytest.approx(0.25)
    assert saved["skipped"]["mean"]["gmac"] == pytest.approx(0.5)
    assert text.splitlines()[-1].split("|")[1].strip() == "skipped, mean"
