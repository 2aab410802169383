"""Opening data by what lies at a path."""

import json
import shutil

import cv2
import numpy as np
import pytest

from skipconv_jax.data import detection_pipeline
from skipconv_jax.data.labelled_videos import clip_boxes
from skipconv_jax.data.prepare import prepare
from skipconv_jax.data.sources import open_clips, open_videos
from skipconv_jax.data.synthetic_pose import clip_name
from skipconv_jax.tasks.detection.metrics import Detections, evaluate_detection
from skipconv_jax.tasks.pose import JOINTS


def test_clips_from_folder_and_records_are_the_same(synthetic_root, tmp_path):
    assert prepare("jhmdb", synthetic_root, tmp_path, quiet=True)
    folder, stored = (open_clips(root, "test", 2) for root in (synthetic_root, tmp_path))
    assert [clip.name for clip in folder] == [clip.name for clip in stored]
    np.testing.assert_array_equal(folder[1].joints, stored[1].joints)


def test_videos_from_folder_and_records_are_the_same(traffic_root, tmp_path):
    assert prepare("ua_detrac", traffic_root, tmp_path, quiet=True)
    folder, stored = (open_videos(root, "test") for root in (traffic_root, tmp_path))
    assert (folder.names, folder.lengths) == (stored.names, stored.lengths)


def test_a_json_beside_its_frames(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 30, 3), np.uint8))
    points = [v for j in range(15) for v in (j, j, 2)]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 9, 9], "keypoints": points}
        ],
        "categories": [{"id": 1, "name": "person", "keypoints": list(JOINTS)}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    (clip,) = open_clips(tmp_path / "labels.json", "test")
    assert clip.visible.all()
    assert open_videos(tmp_path / "labels.json", "test").lengths == [1]


def test_missing_data_says_what_to_do(synthetic_root, traffic_root, tmp_path):
    with pytest.raises(ValueError, match="`root`"):
        open_clips(tmp_path, "train")
    with pytest.raises(ValueError, match="`root`"):
        open_videos(tmp_path, "train")
    shutil.copytree(synthetic_root, tmp_path / "pose")
    shutil.rmtree(tmp_path / "pose" / "Rename_Images" / clip_name(0))
    with pytest.raises(ValueError, match=r"1 of 12 are missing.*--partial"):
        open_clips(tmp_path / "pose", "train")
    shutil.copytree(traffic_root, tmp_path / "traffic")
    shutil.rmtree(tmp_path / "traffic" / "Insight-MVT_Annotation_Train" / "MVI_90000")
    with pytest.raises(ValueError, match=r"MVI_90000.*--partial"):
        open_videos(tmp_path / "traffic", "train")


def test_the_real_xml_goes_through_builder_pipeline_augmentation_and_metric(shared_dir, tmp_path):
    """Four plain frames stand in for the images, which are not here; the annotations are real."""
    root, name = tmp_path / "detrac", "MVI_39031"
    images = root / "Insight-MVT_Annotation_Test" / name
    images.mkdir(parents=True)
    for number in range(1, 5):
        picture = np.full((540, 960, 3), 40 * number, np.uint8)
        cv2.imwrite(str(images / f"img{number:05d}.jpg"), picture)
    (root / "DETRAC-Test-Annotations-XML").mkdir()
    real = shared_dir / "data" / "detrac" / f"{name}_sample.xml"
    shutil.copy(real, root / "DETRAC-Test-Annotations-XML" / f"{name}.xml")
    assert prepare("ua_detrac", root, tmp_path, quiet=True) is None  # 99 sequences are missing
    assert prepare("ua_detrac", root, tmp_path, partial=True, quiet=True)
    videos = open_videos(tmp_path, "test")
    assert (videos.names, videos.lengths) == ([name], [4])
    flipped = detection_pipeline.DetectionAugmentation(flip=1)
    batch = next(
        detection_pipeline.make_train_iterator(
            videos, batch=1, size=(512, 512), augmentation=flipped
        )
    )
    scale = 512 / 960
    np.testing.assert_allclose(
        batch["boxes"][0, 0, 0],
        np.array([960 - 745.6 - 148.2, 357.33, 960 - 745.6, 357.33 + 115.14]) * scale,
        atol=1e-3,
    )
    found = clip_boxes(videos.read(0, range(4)).track.boxes, 540, 960)
    batches = list(detection_pipeline.make_eval_iterator(videos, batch=1, size=(512, 512)))

    def detect(frames):
        assert frames.shape == (1, 4, 512, 512, 3)
        shift = np.array([0.0, 0, 10, 0])  # 148 or 140 columns of 158 or 150: IoU above .9
        return [[Detections((box + shift)[None] * scale, [0.9], [0]) for box in found]]

    score = evaluate_detection(detect, batches)
    assert len(score.coco()[0]["images"]) == 4
    np.testing.assert_allclose(score.result()["ap"], 0.9, atol=1e-6)
