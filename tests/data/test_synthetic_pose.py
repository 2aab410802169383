"""The generator of articulated-figure clips: determinism, truth of its labels, resuming."""

import shutil

import numpy as np
import pytest

from skipconv_jax.data import synthetic_pose
from skipconv_jax.data.figure import ACTIONS, random_motion
from skipconv_jax.data.jhmdb_folder import JhmdbFolder
from skipconv_jax.data.synthetic_pose import Scene, generate, render_clip
from skipconv_jax.tasks.pose import JOINTS
from tests.data.conftest import SCENE

QUIET = Scene(height=96, width=128, frames=10, distractors=0, noise=0, pan=0)


def files(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def images(root):
    return {path: data for path, data in files(root).items() if path.suffix == ".png"}


def test_a_clip_depends_on_seed_and_number_alone():
    first, again = render_clip(SCENE, 7, 3), render_clip(SCENE, 7, 3)
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.joints, again.joints)
    other = render_clip(SCENE, 8, 3)
    assert np.abs(first.joints - other.joints).max() > 1


def test_a_set_is_extended_and_an_interrupted_one_completed(tmp_path):
    whole, grown = tmp_path / "whole", tmp_path / "grown"
    generate(whole, 6, QUIET, seed=1, workers=2)
    generate(grown, 3, QUIET, seed=1, workers=1)
    # What a kill leaves behind: a clip without images, and scraps of another.
    name = synthetic_pose.clip_name(2)
    shutil.rmtree(grown / "Rename_Images" / name)
    (grown / ".partial" / name).mkdir(parents=True)
    (grown / ".partial" / name / "joint_positions.mat").write_bytes(b"half")
    generate(grown, 6, QUIET, seed=1, workers=1)
    assert images(whole) == images(grown)
    assert set(files(whole)) == set(files(grown))


def test_other_settings_are_refused_in_the_same_folder(tmp_path):
    generate(tmp_path, 1, QUIET, seed=1)
    with pytest.raises(ValueError, match="`out`"):
        generate(tmp_path, 1, QUIET, seed=2)


def test_the_written_folder_is_read_back_as_it_was_drawn(synthetic_root):
    folder = JhmdbFolder(synthetic_root)
    drawn = render_clip(SCENE, 5, 6)
    read = folder.clip(drawn.name)
    np.testing.assert_allclose(read.joints, drawn.joints, atol=1e-4)
    np.testing.assert_array_equal(read.frames(range(SCENE.frames)), drawn.frames)
    rows, columns = np.nonzero(drawn.masks[4])
    np.testing.assert_array_equal(
        read.boxes[4], [columns.min(), rows.min(), columns.max(), rows.max()]
    )


def test_joints_lie_on_the_figure():
    for number in range(8):
        clip = render_clip(QUIET, 3, number)
        for t in (0, 5, 9):
            x, y = clip.joints[t].round().astype(int).T
            inside = (x >= 0) & (x < QUIET.width) & (y >= 0) & (y < QUIET.height)
            assert inside.sum() >= 13
            assert clip.masks[t][y[inside], x[inside]].all()


def test_a_still_figure_changes_no_pixel_without_noise_and_moving_ones_do():
    still, moving = 0, 0
    for number in range(8):
        clip = render_clip(QUIET, 3, number)
        change = np.abs(np.diff(clip.frames.astype(int), axis=0)).max(axis=(1, 2, 3))
        np.testing.assert_array_equal(change[clip.still[1:]], 0)
        still += clip.still[1:].sum()
        moving += (change > 0).sum()
    assert still > 10
    assert moving > 10


def test_right_and_left_are_told_by_colour_and_by_where_the_figure_faces():
    """Someone facing the camera has the right shoulder on the left of the picture."""
    for number in range(8):
        rng = np.random.default_rng(number)
        motion = random_motion(5, ACTIONS[number % 4], rng)
        right, left = (
            motion.joints[:, JOINTS.index(f"{s}_shoulder"), 0] for s in ("right", "left")
        )
        np.testing.assert_array_equal(np.sign(left - right), np.sign(motion.facing))


def test_every_clip_is_tested_in_at_most_one_split_and_every_class_in_each(synthetic_root):
    folder = JhmdbFolder(synthetic_root)
    tests = [folder.split("test", k) for k in (1, 2, 3)]
    assert len(set().union(*tests)) == sum(map(len, tests))
    for k, test in enumerate(tests, 1):
        assert {name.partition("/")[0] for name in test} == set(ACTIONS)
        assert sorted(test + folder.split("train", k)) == folder.names()
        assert folder.split("test", k, subset="sub") == test


def test_noise_and_pan_are_what_was_asked_for():
    noisy = render_clip(Scene(96, 128, 4, distractors=0, noise=6, pan=0), 0, 1)
    clean = render_clip(Scene(96, 128, 4, distractors=0, noise=0, pan=0), 0, 1)
    spread = (noisy.frames.astype(int) - clean.frames).std()
    assert 1.5 < spread < 6
    panned = render_clip(Scene(96, 128, 10, distractors=0, noise=0, pan=1), 0, 1)
    corner = np.abs(np.diff(panned.frames[:, :8].astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert (corner > 0).all()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"height": 8}, "height"),
        ({"frames": 0}, "frames"),
        ({"limbs": "striped"}, "limbs"),
        ({"pan": 2}, "pan"),
    ],
)
def test_bad_settings_are_named(change, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        Scene(**change)


def test_command_line(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--clips", "2", "--frames", "2", "--height", "64"]
    synthetic_pose.main([*arguments, "--width", "80", "--workers", "1"])
    assert "2 clips of 2 frames" in capsys.readouterr().out
    clip = JhmdbFolder(tmp_path).clip(synthetic_pose.clip_name(1))
    assert clip.frames([0]).shape == (1, 64, 80, 3)
    with pytest.raises(SystemExit):
        synthetic_pose.main([*arguments, "--seed", "9"])
