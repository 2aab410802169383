"""The papers' protocols on whole pipelines, with predictors whose score is known."""

import numpy as np
import pytest

from skipconv_jax.data import detection_pipeline, pipeline
from skipconv_jax.data.jhmdb_folder import JhmdbFolder
from skipconv_jax.data.labelled_videos import clip_boxes
from skipconv_jax.data.synthetic_pose import Scene
from skipconv_jax.data.synthetic_pose import generate as generate_pose
from skipconv_jax.data.synthetic_traffic import TrafficScene
from skipconv_jax.data.synthetic_traffic import generate as generate_traffic
from skipconv_jax.data.ua_detrac_folder import DetracFolder, FolderVideos
from skipconv_jax.tasks.detection.metrics import Detections, evaluate_detection
from skipconv_jax.tasks.pose import JOINTS, Pck
from skipconv_jax.tasks.splits import over_splits


def test_pck_over_three_splits(tmp_path):
    """Perfect in split 1; wrong in every wrist in split 2; wrong on all of split 3."""
    generate_pose(tmp_path, 16, Scene(height=48, width=64, frames=5), workers=1)
    folder = JhmdbFolder(tmp_path)
    results = {}
    for number in (1, 2, 3):
        clips, _ = folder.clips(folder.split("test", number, "sub"))
        scores = {name: Pck(0.2, name) for name in ("extent", "pixels")}
        for batch in pipeline.make_eval_iterator(clips, batch=3, length=4, size=(32, 32)):
            found, visible = batch["joints"].copy(), batch["visible"] & batch["valid"][..., None]
            assert batch["frames"].shape[:2] == found.shape[:2]
            found[..., {1: [], 2: [11, 12], 3: list(range(15))}[number], :] += 1000
            for score in scores.values():
                score.update(found, batch["joints"], batch["size"], visible, batch["scale"])
        assert int(scores["extent"].counts.max()) <= 5 * len(clips)
        results[number] = scores["pixels"].result()
    rows = over_splits(results)
    assert list(rows) == ["split 1", "split 2", "split 3", "mean"]
    np.testing.assert_allclose(
        [row["mean15"] for row in rows.values()], [1, 13 / 15, 0, 28 / 45], atol=1e-9
    )
    assert rows["mean"]["group/wrist"] == pytest.approx(1 / 3)
    assert rows["mean"]["mean13"] == pytest.approx((1 + 11 / 13) / 3)


def test_over_splits_needs_the_same_figures():
    with pytest.raises(ValueError, match="`results`"):
        over_splits({})
    with pytest.raises(ValueError, match="`results`"):
        over_splits({1: {"a": 1.0}, 2: {"b": 1.0}})
    assert set(JOINTS) <= set(over_splits({1: dict.fromkeys(JOINTS, 1.0)})["mean"])


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("traffic")
    generate_traffic(root, 2, TrafficScene(height=72, width=128, frames=6, night=0), workers=1)
    return FolderVideos(DetracFolder(root), "train")


@pytest.mark.parametrize("agnostic", [True, False])
def test_detection_ap_of_known_answers(videos, agnostic):
    labels = detection_pipeline.Labels(agnostic=agnostic)
    batches = list(
        detection_pipeline.make_eval_iterator(
            videos, batch=2, length=4, size=(96, 96), labels=labels
        )
    )
    assert not all(batch["valid"].all() for batch in batches)

    def answer(shift):
        answers = iter(batches)

        def detect(frames):
            batch = next(answers)
            out = []
            for b in range(len(frames)):
                row = []
                for t in range(frames.shape[1]):
                    real = batch["labels"][b, t] >= 0
                    boxes = batch["boxes"][b, t][real] + shift
                    row.append(Detections(boxes, np.ones(real.sum()), batch["labels"][b, t][real]))
                out.append(row)
            return out

        return evaluate_detection(detect, batches, videos.classes, agnostic)

    perfect = answer(0)
    assert perfect.result()["ap"] == pytest.approx(1)
    truth = perfect.coco()[0]
    annotated = [t for t in range(6) if videos.read(0, [t]).track.annotated[0]]
    assert len(truth["images"]) == len(annotated) > 0
    # The frames are shown at three quarters of their size, the boxes compared at all of it.
    first = clip_boxes(videos.read(0, [annotated[0]]).track.boxes, 72, 128)
    compared = [a["bbox"] for a in truth["annotations"] if a["image_id"] == 1]
    np.testing.assert_allclose(np.array(compared)[:, :2], first[:, :2], atol=1e-3)
    np.testing.assert_allclose(np.array(compared)[:, 2:], first[:, 2:] - first[:, :2], atol=1e-3)
    assert answer(500).result()["ap"] == pytest.approx(0)
