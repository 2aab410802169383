"""Reading JHMDB's folders: the real clip, both spellings of splits, and every kind of damage."""

import shutil

import numpy as np
import pytest
import scipy.io

from skipconv_jax.data.clips import decode_image, is_whole_image, mask_boxes
from skipconv_jax.data.jhmdb_folder import DamagedClipError, JhmdbFolder
from skipconv_jax.data.synthetic_pose import clip_name

REAL = "catch/Goal_Keeping_Tips_catch_f_cm_np1_fr_med_2"


def test_the_real_clip_is_read(real_jhmdb):
    clip = real_jhmdb.clip(REAL, decode_all=True)
    assert clip.length == 40
    assert clip.action == "catch"
    assert (clip.height, clip.width) == (240, 320)
    assert clip.visible.all()
    # The file says 287.44, 111.144 for the first neck, counting from 1.
    np.testing.assert_allclose(clip.joints[0, 0], [286.44, 110.144], atol=1e-3)
    centre = (clip.boxes[:, None, :2] + clip.boxes[:, None, 2:]) / 2
    half = (clip.boxes[:, None, 2:] - clip.boxes[:, None, :2]) / 2
    assert (np.abs(clip.joints - centre) <= half + 12).all()
    assert clip.mirrorable


@pytest.mark.parametrize(("number", "train", "test"), [(1, 660, 268), (2, 658, 270), (3, 663, 265)])
def test_the_full_splits_name_928_clips(real_jhmdb, number, train, test):
    assert len(real_jhmdb.split("train", number)) == train
    assert len(real_jhmdb.split("test", number)) == test
    assert len(real_jhmdb.actions()) == 21


@pytest.fixture
def copy(synthetic_root, tmp_path):
    """A folder with three clips that a test may damage."""
    for number in range(3):
        for kind in ("Rename_Images", "joint_positions", "puppet_mask"):
            name = clip_name(number)
            shutil.copytree(synthetic_root / kind / name, tmp_path / kind / name)
    for kind in ("splits", "sub_splits"):
        shutil.copytree(synthetic_root / kind, tmp_path / kind)
    return JhmdbFolder(tmp_path)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _rewrite(path, key, change):
    array = change(scipy.io.loadmat(path)[key])
    scipy.io.savemat(path, {key: array})


def _other_size(path):
    shutil.copy(path.parents[3] / "puppet_mask" / "other.png", path)


DAMAGE = {
    "no joints": (lambda i, j, m: j.unlink(), "joint_positions.mat: missing"),
    "no masks": (lambda i, j, m: m.unlink(), "puppet_mask.mat: missing"),
    "half a mat": (lambda i, j, m: _cut(j), "joint_positions.mat: cannot be read"),
    "not a mat": (lambda i, j, m: m.write_bytes(b"x" * 200), "puppet_mask.mat: cannot be read"),
    "other variable": (
        lambda i, j, m: scipy.io.savemat(j, {"joints": np.zeros(3)}),
        "has no variable pos_img",
    ),
    "wrong T": (
        lambda i, j, m: _rewrite(j, "pos_img", lambda x: x[:, :, :-2]),
        "holds 8 frames, the clip has 10 images",
    ),
    "wrong joints": (
        lambda i, j, m: _rewrite(j, "pos_img", lambda x: x[:, :13]),
        r"not \(2, 15, T\)",
    ),
    "NaN joints": (
        lambda i, j, m: _rewrite(j, "pos_img", lambda x: x * np.nan),
        "pos_img is not finite",
    ),
    "empty masks": (
        lambda i, j, m: _rewrite(m, "part_mask", lambda x: x * 0),
        "part_mask .* is empty",
    ),
    "masks of another size": (
        lambda i, j, m: _rewrite(m, "part_mask", lambda x: x[:-1]),
        "masks of",
    ),
    "frame gone": (lambda i, j, m: (i / "00004.png").unlink(), "00005.png: frame 4 is missing"),
    "truncated PNG": (lambda i, j, m: _cut(i / "00007.png"), "00007.png is cut short or damaged"),
    "not an image": (lambda i, j, m: (i / "00002.png").write_bytes(b"?"), "00002.png is no PNG"),
    "no images": (lambda i, j, m: [p.unlink() for p in i.iterdir()], "no images"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_reported_by_file(copy, kind):
    damage, message = DAMAGE[kind]
    name = clip_name(1)
    damage(
        copy.root / "Rename_Images" / name,
        copy.root / "joint_positions" / name / "joint_positions.mat",
        copy.root / "puppet_mask" / name / "puppet_mask.mat",
    )
    with pytest.raises(DamagedClipError, match=message) as caught:
        copy.clip(name, decode_all=True)
    assert caught.value.name == name
    if kind not in ("truncated PNG", "not an image"):  # these need every frame decoded
        good, bad = copy.clips(copy.names() + ([name] if kind == "no images" else []))
        assert {error.name for error in bad} == {name}
        assert len(good) == 2


def test_a_truncated_frame_is_never_decoded_as_if_whole(copy):
    clip = copy.clip(clip_name(0))
    _cut(copy.frame_paths(clip.name)[3])
    assert clip.frames([2]).shape == (1, 96, 128, 3)
    with pytest.raises(ValueError, match=r"frame 4 of .* is cut short"):
        clip.frames([2, 3])


def test_frames_with_an_empty_mask_take_the_nearest_box(copy):
    path = copy.root / "puppet_mask" / clip_name(0) / "puppet_mask.mat"
    before = copy.clip(clip_name(0)).boxes

    def empty(mask):
        mask[:, :, [0, 1, 5]] = 0
        return mask

    _rewrite(path, "part_mask", empty)
    after = copy.clip(clip_name(0)).boxes
    np.testing.assert_array_equal(after[[0, 1]], before[[2, 2]])
    assert (after[5] == before[4]).all() or (after[5] == before[6]).all()


def test_joints_outside_the_image_are_not_visible(copy):
    path = copy.root / "joint_positions" / clip_name(0) / "joint_positions.mat"

    def push(joints):
        joints[0, 3, 2] = 129  # columns run from 1 to 128
        joints[1, 4, 2] = 0.5
        return joints

    _rewrite(path, "pos_img", push)
    hidden = np.argwhere(~copy.clip(clip_name(0)).visible)
    assert {(2, 3), (2, 4)} <= {tuple(index) for index in hidden.tolist()}


def test_lists_name_clips_whose_files_are_absent(copy):
    assert len(copy.split("train") + copy.split("test")) == 16
    good, bad = copy.clips(copy.split("train") + copy.split("test"))
    assert (len(good), len(bad)) == (3, 13)


def test_bad_arguments_are_named(copy, tmp_path):
    with pytest.raises(ValueError, match=r"`root`.*Rename_Images"):
        JhmdbFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="`part`"):
        copy.split("validation")
    with pytest.raises(ValueError, match="`number`"):
        copy.split("test", 4)
    with pytest.raises(ValueError, match="`subset`"):
        copy.split("test", 1, "half")
    (copy.root / "splits" / "walk_test_split1.txt").write_text("a clip.avi 1\n")
    with pytest.raises(ValueError, match="line 1"):
        copy.split("test", 1)


def test_mask_boxes_are_tight_and_nan_where_empty():
    masks = np.zeros((2, 6, 7), bool)
    masks[0, 2:4, 1:6] = True
    np.testing.assert_array_equal(mask_boxes(masks)[0], [1, 2, 5, 3])
    assert np.isnan(mask_boxes(masks)[1]).all()


def test_whole_images_are_known_by_their_ends(copy):
    data = copy.frame_paths(clip_name(0))[0].read_bytes()
    assert is_whole_image(data)
    assert not is_whole_image(data[:-12])
    assert decode_image(data, "x").shape == (96, 128, 3)
