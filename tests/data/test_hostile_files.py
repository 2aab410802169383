"""Files made to break readers: one line each, in bounded memory and time."""

import json
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
import scipy.io

from skipconv_jax import json_files
from skipconv_jax.data import mat_files
from skipconv_jax.data.coco_folder import CocoFolder, CocoVideos, Pictures, read_pose_clips
from skipconv_jax.data.folders import Note
from skipconv_jax.data.jhmdb_folder import JhmdbFolder
from skipconv_jax.data.prepare import Journal
from skipconv_jax.data.ua_detrac_folder import parse_annotations

PERSON = {"id": 1, "name": "person", "keypoints": ["left_shoulder", "right_shoulder"]}


def _set(root, images=None, annotations=(), size=(30, 20), **more):
    """A COCO-style file with one image beside it."""
    cv2.imwrite(str(root / "a.png"), np.zeros((size[1], size[0], 3), np.uint8))
    content = {"images": images or [{"id": 1, "file_name": "a.png"}], "categories": [PERSON],
               "annotations": list(annotations), **more}  # fmt: skip
    file = root / "labels.json"
    file.write_text(json.dumps(content))
    return file


def _annotation(**entry):
    return {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], **entry}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b"\xff\xfe\x00", "no valid JSON"),
        (b'{"images": ' + b"9" * 5000 + b"}", "no valid JSON"),
        (b"", "no valid JSON"),
    ],
)
def test_json_that_is_none(tmp_path, text, reason):
    file = tmp_path / "labels.json"
    file.write_bytes(text)
    with pytest.raises(ValueError, match=rf"`file`.*labels\.json.*{reason}") as caught:
        CocoVideos(tmp_path, file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_read_over(tmp_path, encoding):
    file = _set(tmp_path, annotations=[_annotation()])
    file.write_text(file.read_text(), encoding=encoding)
    assert CocoVideos(tmp_path, file).lengths == [1]


@pytest.mark.parametrize("box", ["[1, 2, 1e400, 4]", "[NaN, 2, 3, 4]", "[1, 2, 3, -Infinity]",
                                 "[1, 2, true, 4]", "{}", '"1234"'])  # fmt: skip
def test_numbers_that_are_none(tmp_path, box):
    file = _set(tmp_path, annotations=[_annotation()])
    file.write_text(file.read_text().replace("[1, 2, 3, 4]", box))
    with pytest.raises(ValueError, match=r"Annotation 7 has `bbox` \(=.*finite"):
        CocoVideos(tmp_path, file)


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ({"track_id": 2**31}, r"annotations\[0\].track_id"),
        ({"iscrowd": 3}, r"annotations\[0\].iscrowd"),
        ({"image_id": [1]}, r"annotations\[0\].image_id"),
    ],
)
def test_entries_out_of_range_are_named_with_place_and_value(tmp_path, entry, place):
    file = _set(tmp_path, annotations=[_annotation(**entry)])
    with pytest.raises(ValueError, match=rf"labels\.json.*{place}") as caught:
        CocoVideos(tmp_path, file)
    assert json.dumps(next(iter(entry.values()))) in str(caught.value)


@pytest.mark.parametrize("name", ["/etc/hostname", "../a.png", "x/../../a.png",
                                  "..\\a.png", "", "a\0.png"])  # fmt: skip
def test_a_file_name_stays_inside_its_folder(tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    file = _set(inside, [{"id": 1, "file_name": name}])
    with pytest.raises(ValueError, match=r"image 1 has `file_name`.*inside of"):
        CocoVideos(inside, file)


@pytest.mark.parametrize("name", ["a" * 5000, "é" * 200, "/".join(["ab"] * 900)])
def test_a_file_name_is_one_that_a_file_can_have(tmp_path, name):
    file = _set(tmp_path, [{"id": 1, "file_name": name}])
    with pytest.raises(
        ValueError, match=r"labels\.json: image 1 has `file_name`.*at most"
    ) as caught:
        CocoVideos(tmp_path, file)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["-a.png", "a:b.png", "a#b.png", "100%.png", "what?.png", "é.png"])
def test_odd_names_are_names(tmp_path, name):
    cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tofile(tmp_path / name)
    file = _set(tmp_path, [{"id": 1, "file_name": name}])
    assert len(CocoVideos(tmp_path, file).read(0, [0]).encoded) == 1


def test_images_alone_are_enough_for_a_stream_and_not_for_training(tmp_path):
    file = _set(tmp_path)
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.png"}]}))
    assert [len(v) for v in CocoFolder.read(tmp_path, file, Pictures).videos.values()] == [1]
    with pytest.raises(ValueError, match="must have `annotations`, a list"):
        CocoVideos(tmp_path, file)


def test_a_box_is_made_from_visible_keypoints(tmp_path):
    points = [5, 6, 2, 9, 4, 1]
    entry = _annotation(keypoints=points)
    del entry["bbox"]
    file = _set(tmp_path, annotations=[entry])
    boxes = CocoVideos(tmp_path, file).read(0, [0]).track.boxes
    np.testing.assert_array_equal(boxes, [[5, 4, 10, 7]])
    np.testing.assert_array_equal(read_pose_clips(tmp_path, file)[0].boxes, [[5, 4, 9, 6]])
    entry["keypoints"] = [5, 6, 0, 9, 4, 0]
    with pytest.raises(ValueError, match=r"Annotation 7 has `bbox` \(=None\)"):
        CocoVideos(tmp_path, _set(tmp_path, annotations=[entry]))


@pytest.mark.parametrize("size", [(20, 30), (30, 20)])
def test_annotations_of_turned_images_fit_what_is_shown(tmp_path, size):
    """An exporter that looks at no orientation gives the stored size; one that does, the shown."""
    from PIL import Image

    # 30 x 20 stored, a quarter turn: shown are 20 x 30.
    picture = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    exif = picture.getexif()
    exif[0x112] = 6
    picture.save(tmp_path / "b.jpg", exif=exif)
    entry = {"id": 1, "file_name": "b.jpg", "width": size[0], "height": size[1]}
    points = [1, 2, 2, 3, 3, 2]
    file = _set(tmp_path, [entry], [_annotation(bbox=[1, 2, 3, 2], keypoints=points)])
    window = CocoVideos(tmp_path, file).read(0, [0])
    turned = size == (30, 20)
    np.testing.assert_array_equal(
        window.track.boxes, [[16, 1, 18, 4]] if turned else [[1, 2, 4, 4]]
    )
    clip = read_pose_clips(tmp_path, file)[0]
    assert clip.frames([0]).shape == (1, 30, 20, 3)
    shoulders = clip.joints[0][clip.visible[0]].tolist()
    assert sorted(shoulders) == ([[16, 3], [17, 1]] if turned else [[1, 2], [3, 3]])


def test_a_size_that_is_not_the_file_s_is_refused(tmp_path):
    file = _set(tmp_path, [{"id": 1, "file_name": "a.png", "width": 31, "height": 20}])
    with pytest.raises(ValueError, match=r"image 1 has `height`, `width` \(=\(20, 31\)\)"):
        CocoVideos(tmp_path, file)


def test_sizes_written_as_decimals_are_sizes(tmp_path):
    file = _set(tmp_path, [{"id": 1, "file_name": "a.png", "width": 30.0, "height": 20.0}])
    assert CocoVideos(tmp_path, file).lengths == [1]


def test_lists_and_journals_that_are_no_text(synthetic_root, tmp_path):
    shutil.copytree(synthetic_root, tmp_path / "set")
    file = next((tmp_path / "set" / "splits").iterdir())
    file.write_bytes(file.read_bytes() + b"\xb3.avi 1\n")
    number = int(file.stem[-1])
    with pytest.raises(ValueError, match=r"_test_split\d\.txt, byte \d+, must be text"):
        JhmdbFolder(tmp_path / "set").split("train", number)
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(b'\xff\n5\n{"name": [], "frames": 1, "problems": [], "fingerprint": "x"}\n')
    assert Journal(journal).find("a", "x") is None


def _objects():
    array = np.empty(2, object)
    array[:] = [1, "a"]
    return array


@pytest.mark.parametrize("value", [{"a": 1}, _objects(), "text", np.ones((2, 2)) * 1j])
def test_mat_files_of_other_kinds(tmp_path, value):
    scipy.io.savemat(tmp_path / "x.mat", {"pos_img": value})
    with pytest.raises(mat_files.MatError, match="pos_img"):
        mat_files.read(tmp_path / "x.mat", "pos_img")


def test_a_mat_file_that_expands_is_refused_before_it_is_expanded(tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", {"part_mask": np.ones((2, 3, 4), np.uint8)})
    bomb = zlib.compressobj(1)
    packed = b"".join(bomb.compress(b"\0" * (1 << 20)) for _ in range(300)) + bomb.flush()
    with (tmp_path / "x.mat").open("ab") as file:
        file.write(struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(mat_files.MatError, match="expands to more than"):
        mat_files.read(tmp_path / "x.mat", "part_mask")


@pytest.mark.parametrize("value", ["1e400", "nan", "3000000000", "-9e99"])
def test_xml_numbers_that_mean_nothing(value):
    text = f'<sequence name="a"><frame num="{value}"/></sequence>'
    with pytest.raises(ValueError, match="num="):
        parse_annotations(text)


def test_xml_in_an_unknown_encoding():
    with pytest.raises(ValueError, match="no valid XML"):
        parse_annotations(b'<?xml version="1.0" encoding="klingon"?><sequence name="a"/>')


def test_json_errors_cut_long_values(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"mirrorable": "x" * 10_000}))
    with pytest.raises(json_files.JsonError, match=r"at \$\.mirrorable") as caught:
        json_files.read(file, Note)
    assert len(str(caught.value)) < 400
