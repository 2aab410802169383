"""The generator of traffic: determinism, labels that fit the picture, the layout it writes."""

import itertools
import shutil

import numpy as np
import pytest

from skipconv_jax.data import synthetic_traffic
from skipconv_jax.data.labelled_videos import clip_boxes
from skipconv_jax.data.synthetic_traffic import TrafficScene, generate, render_sequence, to_xml
from skipconv_jax.data.traffic import FPS, Road
from skipconv_jax.data.ua_detrac_folder import VEHICLES, DetracFolder, parse_annotations
from tests.data.conftest import TRAFFIC

CLEAN = TrafficScene(height=108, width=192, frames=6, night=0, noise=0, density=0.6)


def images(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*.jpg"))}


def test_a_sequence_depends_on_seed_and_number_alone():
    first, again, other = (render_sequence(CLEAN, seed, 2) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.frames, again.frames)
    assert to_xml(first) == to_xml(again)
    assert (first.frames != other.frames).any()


def test_an_interrupted_set_is_completed(tmp_path, traffic_root):
    shutil.copytree(traffic_root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "Insight-MVT_Annotation_Train" / "MVI_90002")
    scrap = tmp_path / "copy" / ".partial" / "MVI_90002" / "img00001.jpg"
    scrap.parent.mkdir(parents=True)
    scrap.write_bytes(b"half")
    generate(tmp_path / "copy", 5, TRAFFIC, seed=2, workers=2)
    assert images(tmp_path / "copy") == images(traffic_root)
    assert not scrap.exists()
    with pytest.raises(ValueError, match="`out`"):
        generate(tmp_path / "copy", 5, TRAFFIC, seed=3)


def test_boxes_enclose_what_moves():
    """Between two frames pixels change inside boxes, shadows, and the far end of the road only."""
    sequence = render_sequence(CLEAN, 6, 0)
    change = np.abs(np.diff(sequence.frames.astype(int), axis=0)).max(axis=-1) > 12
    inside, total = 0, 0
    for t in range(5):
        allowed = np.zeros(change[t].shape, bool)
        near = [f.box for when in (t, t + 1) for f in sequence.targets[when]]
        for box in [*near, *sequence.ignored]:
            x1, y1, x2, y2 = clip_boxes(np.add(box, [-5, -5, 5, 9]), 108, 192).astype(int)
            allowed[y1 : y2 + 1, x1 : x2 + 1] = True
        inside += (change[t] & allowed).sum()
        total += change[t].sum()
    assert total > 200
    assert inside / total > 0.97


def test_all_that_the_real_data_has_occurs():
    kinds, hidden, past_edge, empty, speeds, nights = set(), [], 0, 0, [], set()
    scene = TrafficScene(height=72, width=128, frames=40, night=0.5, density=0.35)
    for number in range(6):
        sequence = render_sequence(scene, 1, number)
        nights.add(sequence.night)
        for targets in sequence.targets:
            empty += not targets
            kinds |= {f.kind for f in targets}
            hidden += [f.hidden for f in targets]
            speeds += [f.speed for f in targets]
            past_edge += sum(f.box.min() < 0 or f.box[3] > 72 or f.box[2] > 128 for f in targets)
    assert kinds == set(range(len(VEHICLES)))
    assert max(hidden) > 0.3
    assert min(speeds) == 0  # it stands
    assert max(speeds) > 7
    assert past_edge > 10
    assert nights == {True, False}


def test_vehicles_keep_their_distance_and_stop_at_the_line():
    road = Road(np.random.default_rng(0), density=1.0, stop=(4.0, 12.0))
    stood = set()
    for step in range(15 * FPS):
        time = step / FPS
        before = {v.number: v.travelled for v in road.vehicles}
        road.step(time)
        for lane in range(4):
            row = sorted((v for v in road.vehicles if v.lane == lane), key=lambda v: v.travelled)
            for behind, ahead in itertools.pairwise(row):
                assert behind.travelled <= ahead.travelled - ahead.size[0]
        if 9 < time < 12:
            stood |= {v.number for v in road.vehicles if v.speed == 0}
            assert all(
                not (before[v.number] < 57.5 and v.travelled > 58.5)
                for v in road.vehicles
                if v.number in before
            )
    assert stood
    assert not any(v.speed == 0 and v.number in stood for v in road.vehicles)  # they drove on


def test_the_camera_stands_still_unless_asked_to_shake():
    still = render_sequence(CLEAN, 3, 1).frames[:, :6].astype(int)  # above the road
    assert np.abs(np.diff(still, axis=0)).max() == 0
    shaken = TrafficScene(height=108, width=192, frames=6, night=0, noise=0, shake=3)
    moving = render_sequence(shaken, 3, 1).frames[:, :6].astype(int)
    assert (np.abs(np.diff(moving, axis=0)).mean(axis=(1, 2, 3)) > 0).all()


def test_the_xml_says_what_was_drawn():
    sequence = render_sequence(CLEAN, 9, 3)
    read = parse_annotations(to_xml(sequence))
    assert read.name == sequence.name
    assert read.attributes == {"camera_state": "stable", "sence_weather": "sunny"}
    np.testing.assert_allclose(read.ignored, sequence.ignored, atol=0.02)
    for number, targets in enumerate(sequence.targets, 1):
        boxes, labels, ids = read.frames[number]
        np.testing.assert_allclose(boxes, [f.box for f in targets], atol=0.02)
        np.testing.assert_array_equal(labels, [f.kind for f in targets])
        np.testing.assert_array_equal(ids, [f.number for f in targets])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"height": 8}, "height"),
        ({"frames": 0}, "frames"),
        ({"night": 2}, "night"),
        ({"quality": 0}, "quality"),
        ({"shake": -1}, "shake"),
    ],
)
def test_bad_settings_are_named(change, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        TrafficScene(**change)


def test_command_line(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--sequences", "2", "--frames", "2", "--height", "72"]
    synthetic_traffic.main([*arguments, "--width", "128", "--workers", "1"])
    assert "2 sequences of 2 frames" in capsys.readouterr().out
    folder = DetracFolder(tmp_path)
    assert (folder.names("train"), folder.names("test")) == (["MVI_90000"], ["MVI_90001"])
    with pytest.raises(SystemExit):
        synthetic_traffic.main([*arguments, "--seed", "9"])
