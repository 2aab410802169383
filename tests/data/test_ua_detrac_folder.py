"""Reading UA-DETRAC: the real XML, its oddities, and every kind of damage."""

import shutil

import numpy as np
import pytest

from skipconv_jax.data import ua_detrac_folder
from skipconv_jax.data.labelled_videos import BoxTrack, clip_boxes, covered, make_track
from skipconv_jax.data.ua_detrac_folder import (
    VEHICLES,
    DamagedSequenceError,
    DetracFolder,
    FolderVideos,
    parse_annotations,
)


def test_the_real_xml_is_read(shared_dir):
    text = (shared_dir / "data" / "detrac" / "MVI_39031_sample.xml").read_bytes()
    found = parse_annotations(text)
    assert found.name == "MVI_39031"
    assert found.attributes == {"camera_state": "unstable", "sence_weather": "sunny"}
    np.testing.assert_allclose(found.ignored[0], [335.75, 52.75, 592.25, 170.25])
    assert found.ignored.shape == (3, 4)
    assert sorted(found.frames) == [1, 2, 3, 4]
    boxes, labels, ids = found.frames[3]
    np.testing.assert_allclose(boxes, [[732.8, 343.68, 875.03, 451.13]], rtol=1e-6)
    assert (labels.tolist(), ids.tolist()) == ([VEHICLES.index("car")], [1])
    track = found.track(6)
    np.testing.assert_array_equal(track.annotated, [1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(track.counts, [1, 1, 1, 1, 0, 0])


def test_the_lists_are_the_published_ones(shared_dir):
    for part, file in (("train", "split_train60.txt"), ("test", "split_test40.txt")):
        published = (shared_dir / "data" / "detrac" / file).read_text().split()
        assert sorted(ua_detrac_folder.EXPECTED[part]) == sorted(published)
    assert len(ua_detrac_folder.TRAIN_SEQUENCES) == 60
    assert len(ua_detrac_folder.TEST_SEQUENCES) == 40


ODD = """<?xml version="1.0"?>
<sequence name="MVI_1">
  <frame num="7" density="2">
    <target_list>
      <target id="3"><attribute vehicle_type="bus" speed="1"/><box height="10" width="20" top="-5" left="950"/>
        <occlusion><region_overlap occlusion_id="4" occlusion_status="1"/></occlusion></target>
      <target id="4"><box left="1" top="2" width="3" height="4"/><attribute vehicle_type="others"/></target>
    </target_list>
  </frame>
  <frame num="2" density="0"><target_list/></frame>
</sequence>"""  # noqa: E501


def test_odd_but_valid_files():
    """No regions to ignore, other orders, boxes past the edge, frames missing and frames empty."""
    found = parse_annotations(ODD)
    assert found.ignored.shape == (0, 4)
    np.testing.assert_array_equal(found.frames[7][0], [[950, -5, 970, 5], [1, 2, 4, 6]])
    np.testing.assert_array_equal(found.frames[7][1], [1, 3])
    track = found.track(8)
    assert track.annotated.tolist() == [False, True, False, False, False, False, True, False]
    assert track.frame(1)[0].shape == (0, 4)
    np.testing.assert_array_equal(clip_boxes(track.frame(6)[0], 540, 960)[0], [950, 0, 960, 5])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</sequence>", "", "no valid XML"),
        ("sequence", "video", "begins with <video>"),
        (' name="MVI_1"', "", "not with <sequence name"),
        ('num="7"', 'num="two"', "num='two', not a number"),
        ('num="7"', 'num="2"', "frame 2 is below 1 or there twice"),
        ('num="7"', 'num="0"', "frame 0 is below 1"),
        ('width="20"', 'width="-20"', "target 3 of frame 7 has a box of -20.0 x 10.0"),
        ('left="1"', 'left="nan"', "left='nan', not a number"),
        ('left="1" ', "", "left=None, not a number"),
        ('vehicle_type="bus"', 'vehicle_type="tram"', "vehicle_type='tram'"),
        ('<attribute vehicle_type="others"/>', "", "target 4 of frame 7 has vehicle_type=None"),
        ('<box left="1" top="2" width="3" height="4"/>', "", "target 4 of frame 7 has no <box>"),
    ],
)
def test_bad_entries_are_named(old, new, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse_annotations(ODD.replace(old, new))


def test_the_synthetic_folder_is_read(traffic):
    assert traffic.synthetic
    train, test = (FolderVideos(traffic, part) for part in ("train", "test"))
    assert (len(train.names), len(test.names)) == (3, 2)
    assert train.lengths == [20, 20, 20]
    window = train.read(1, [4, 2])
    assert [data[:2] for data in window.encoded] == [b"\xff\xd8"] * 2
    forward = train.read(1, [2, 4])
    np.testing.assert_array_equal(window.track.frame(0)[0], forward.track.frame(1)[0])
    assert window.ignored.shape == (1, 4)


@pytest.fixture
def copy(traffic_root, tmp_path):
    shutil.copytree(traffic_root, tmp_path / "traffic")
    return DetracFolder(tmp_path / "traffic")


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "no xml": (lambda i, x: x.unlink(), ".xml: missing"),
    "half an xml": (lambda i, x: _cut(x), ".xml: no valid XML"),
    "another's xml": (
        lambda i, x: x.write_text(x.read_text().replace(x.stem, "MVI_7")),
        "describes sequence 'MVI_7'",
    ),
    "too many frames": (lambda i, x: (i / "img00020.jpg").unlink(), "describes frame 20"),
    "frame gone": (lambda i, x: (i / "img00004.jpg").unlink(), "img00005.jpg: frame 4 is missing"),
    "truncated": (lambda i, x: _cut(i / "img00007.jpg"), "img00007.jpg is cut short or damaged"),
    "no images": (lambda i, x: shutil.rmtree(i), "no images"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_reported_by_file(copy, kind):
    damage, message = DAMAGE[kind]
    name = copy.names("train")[0]
    damage(
        copy.root / "Insight-MVT_Annotation_Train" / name,
        copy.root / "DETRAC-Train-Annotations-XML" / f"{name}.xml",
    )
    with pytest.raises(DamagedSequenceError, match=message):
        copy.sequence("train", name, decode_all=True)
    assert name in copy.names("train")  # it is not forgotten
    if kind != "truncated":  # found only where every frame is decoded
        videos = FolderVideos(copy, "train")
        assert [error.name for error in videos.damaged] == [name]
        assert len(videos.names) == 2
        with pytest.raises(DamagedSequenceError):
            FolderVideos(copy, "train", [name])


def test_bad_arguments_are_named(traffic, tmp_path):
    with pytest.raises(ValueError, match="`root`"):
        DetracFolder(tmp_path)
    with pytest.raises(ValueError, match="`part`"):
        traffic.names("validation")
    with pytest.raises(ValueError, match="must agree"):
        BoxTrack(np.zeros((2, 4)), np.zeros(1), np.zeros(2), np.array([2]), np.array([True]))


def test_tracks_take_frames_in_any_order_and_twice():
    frames = [(np.full((n, 4), n, np.float32), np.full(n, n), np.arange(n)) for n in (2, 0, 3)]
    track = make_track([frames[0], None, frames[1], frames[2]])
    taken = track.take([3, 1, 0, 3])
    np.testing.assert_array_equal(taken.counts, [3, 0, 2, 3])
    np.testing.assert_array_equal(taken.labels, [3] * 3 + [2] * 2 + [3] * 3)
    np.testing.assert_array_equal(taken.annotated, [True, False, True, True])


def test_cover_of_overlapping_regions_counts_once():
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 30, (6, 2))
    regions = np.concatenate([corner, corner + rng.integers(1, 20, (6, 2))], axis=1).astype(float)
    corner = rng.integers(0, 40, (20, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 15, (20, 2))], axis=1).astype(float)
    painted = np.zeros((60, 60))
    for x1, y1, x2, y2 in regions.astype(int):
        painted[y1:y2, x1:x2] = 1
    expected = [painted[y1:y2, x1:x2].mean() for x1, y1, x2, y2 in boxes.astype(int)]
    np.testing.assert_allclose(covered(boxes, regions), expected, atol=1e-12)
    assert len(set(expected)) > 5
    np.testing.assert_array_equal(covered(boxes, np.zeros((0, 4))), np.zeros(20))
