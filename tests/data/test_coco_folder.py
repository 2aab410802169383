"""A user's own folder of frames with a COCO-style JSON, for detection and for pose."""

import json

import cv2
import numpy as np
import pytest

from skipconv_jax.data import detection_pipeline, pipeline
from skipconv_jax.data.coco_folder import CocoFolder, CocoVideos, read_pose_clips
from skipconv_jax.tasks.pose import JOINTS

KEYPOINTS = ["nose", "left shoulder", "right_shoulder", "Neck", "left_ankle"]


@pytest.fixture
def folder(tmp_path):
    """Two videos of 3 and 11 frames; the longer one has frames 2 and 10."""
    content = {
        "images": [],
        "annotations": [],
        "categories": [
            {"id": 7, "name": "person", "keypoints": KEYPOINTS},
            {"id": 3, "name": "dog"},
        ],
    }
    for video, frames in (("park", 11), ("yard", 3)):
        (tmp_path / video).mkdir()
        for t in reversed(range(frames)):
            image = np.full((40, 60, 3), 10 * t, np.uint8)
            cv2.imwrite(str(tmp_path / video / f"frame{t}.png"), image)
            number = len(content["images"]) + 100
            content["images"].append({"id": number, "file_name": f"{video}/frame{t}.png"})
            if video == "park" and t == 4:
                continue
            points = [[5 + t, 6, 2], [7, 8, 1], [9, 10, 2], [11, 12, 0], [13, 14, 2]]
            content["annotations"] += [
                {
                    "id": 2 * number,
                    "image_id": number,
                    "category_id": 7,
                    "bbox": [t, 5, 20, 30],
                    "keypoints": np.array(points).ravel().tolist(),
                    "track_id": 1,
                },
                {
                    "id": 2 * number + 1,
                    "image_id": number,
                    "category_id": 3,
                    "bbox": [30, 5, 10, 10],
                    "iscrowd": int(t == 2),
                },
            ]
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(content))
    return tmp_path, file, content


def test_videos_are_in_order_with_their_boxes(folder):
    source = CocoVideos(*folder[:2])
    assert source.names == ["park", "yard"]
    assert source.lengths == [11, 3]
    assert source.classes == ("dog", "person")
    window = source.read(0, [10, 2, 4])
    shade = [cv2.imdecode(np.frombuffer(d, np.uint8), 0)[0, 0] for d in window.encoded]
    assert shade == [100, 20, 40]
    boxes, labels, ids = window.track.frame(0)
    np.testing.assert_array_equal(boxes, [[10, 5, 30, 35], [30, 5, 40, 15]])
    assert (labels.tolist(), ids.tolist()) == ([1, 0], [1, -1])
    assert window.track.counts.tolist() == [2, 1, 0]  # a crowd is no object ...
    np.testing.assert_array_equal(window.ignored, [[30, 5, 40, 15]])  # ... but a region to ignore
    assert window.track.annotated.all()
    batch = next(detection_pipeline.make_eval_iterator(source, batch=2, size=(64, 64)))
    assert batch["frames"].shape == (2, 4, 64, 64, 3)


def test_pose_clips_take_the_joints_they_know(folder):
    clips = read_pose_clips(*folder[:2])
    assert [clip.name for clip in clips] == ["park", "yard"]
    park = clips[0]
    assert park.length == 11
    seen = {JOINTS[j] for j in np.flatnonzero(park.visible[3])}
    assert seen == {"left_shoulder", "right_shoulder", "left_ankle"}  # the neck has v = 0
    np.testing.assert_array_equal(park.joints[3, JOINTS.index("left_shoulder")], [7, 8])
    np.testing.assert_array_equal(park.boxes[3], [3, 5, 22, 34])
    assert not park.visible[4].any()
    np.testing.assert_array_equal(park.boxes[4], park.boxes[3])
    batch = next(pipeline.make_eval_iterator(clips, batch=1, length=8, size=(32, 32)))
    assert batch["visible"].sum() == 3 * 7


def test_joints_outside_of_the_image_do_not_count(folder):
    root, file, content = folder
    content["annotations"][0]["keypoints"][:2] = [-3, 6]
    content["annotations"][0]["keypoints"][6:8] = [9, 40]  # 40 rows: the last one is 39
    left_shoulder, right_shoulder = JOINTS.index("left_shoulder"), JOINTS.index("right_shoulder")
    file.write_text(json.dumps(content))
    visible = read_pose_clips(root, file)[0].visible[-1]
    assert visible[left_shoulder]
    assert not visible[right_shoulder]


def test_frame_id_and_video_id_come_first(folder):
    root, file, content = folder
    for image in content["images"]:
        image["video_id"] = 1
        image["frame_id"] = -image["id"]
    file.write_text(json.dumps(content))
    videos = CocoFolder.read(root, file).videos
    assert list(videos) == ["1"]
    assert [image.id for image in videos["1"]] == sorted(
        (image["id"] for image in content["images"]), reverse=True
    )


def change_first(key, **entry):
    return lambda content: content[key][0].update(entry)


BAD = {
    "no categories": (lambda c: c.pop("categories"), "must have `categories`"),
    "no images": (lambda c: c.update(images=[], annotations=[]), "at least one image"),
    "lost image": (change_first("images", file_name="gone.png"), "gone.png, which does not exist"),
    "unnamed image": (
        lambda c: c["images"][0].pop("file_name"),
        "entry of `images` must have `file_name`",
    ),
    "lost annotation": (change_first("annotations", image_id=5), "image 5, which is not"),
    "bad box": (change_first("annotations", bbox=[1, 2, 3]), "`bbox`"),
    "no number in a box": (change_first("annotations", bbox=[1, 2, "3", None]), "`bbox`"),
    "NaN in a box": (change_first("annotations", bbox=[1, 2, float("nan"), 4]), "`bbox`"),
    "no list": (lambda c: c.update(images={"0": 1}), "must have `images`, a list"),
    "no objects": (lambda c: c.update(annotations=[1]), "entry of `annotations`"),
    "id twice": (lambda c: c["images"][1].update(id=c["images"][0]["id"]), "id"),
    "unnumbered image": (change_first("images", id="x"), "entry of `images` must have `id`"),
    "unnumbered frame": (change_first("images", frame_id="x"), "`frame_id`"),
    "no category": (lambda c: c["annotations"][0].pop("category_id"), "`category_id`"),
    "unnamed category": (lambda c: c["categories"][0].pop("name"), "`name`"),
    "flat box": (change_first("annotations", bbox=[1, 2, 3, 0]), "`bbox`"),
    "lost category": (change_first("annotations", category_id=9), "`category_id`"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named(folder, kind):
    root, file, content = folder
    damage, message = BAD[kind]
    damage(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        CocoVideos(root, file)


def test_bad_poses_are_named(folder, tmp_path):
    root, file, content = folder
    with pytest.raises(ValueError, match=r"`file`.*must be a COCO-style JSON"):
        read_pose_clips(root, tmp_path / "absent.json")
    twice = json.loads(json.dumps(content))
    twice["annotations"].append({**twice["annotations"][0], "id": 1})
    file.write_text(json.dumps(twice))
    with pytest.raises(ValueError, match="2 persons"):
        read_pose_clips(root, file)
    for keypoints in ([1, 2, 2] * 4, [1, 2], ["1"] * 15, [float("nan")] * 15):
        wrong = json.loads(json.dumps(content))
        wrong["annotations"][0]["keypoints"] = keypoints
        file.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="`keypoints` of 15 numbers"):
            read_pose_clips(root, file)
    file.write_text("5")
    with pytest.raises(ValueError, match="must have `images`, a list"):
        read_pose_clips(root, file)
    bare = json.loads(json.dumps(content))
    bare["categories"][0]["keypoints"] = ["nose"]
    file.write_text(json.dumps(bare))
    with pytest.raises(ValueError, match="`categories`"):
        read_pose_clips(root, file)
    empty = json.loads(json.dumps(content))
    empty["annotations"] = []
    file.write_text(json.dumps(empty))
    with pytest.raises(ValueError, match="shows no person"):
        read_pose_clips(root, file)
