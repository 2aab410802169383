"""`--onnx` and `--fn` for pose, segmentation and labelled videos, on tiny networks."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx")

from skipconv_jax.commands import agreement, calibrate, cli
from skipconv_jax.commands.stream import Settings, stream
from skipconv_jax.data.video_labels import read_labels
from skipconv_jax.presets import Pixels
from skipconv_jax.presets.pixels import unit
from skipconv_jax.streaming.sources import Source
from skipconv_jax.tasks.given.experiment import Network, configuration, given
from skipconv_jax.tasks.given.segments import Overlap
from tests.commands.test_brought import detector, video  # noqa: F401

SIZE = (32, 64)
ROOT = Path(__file__).parents[2]


def _weight(channels):
    """A 4x4 kernel of stride 4 per channel (J, 3, 4, 4): the mean of the cell times a factor."""
    return np.asarray(channels, np.float32).reshape(-1, 1, 1, 1) * np.full((1, 3, 4, 4), 1 / 48)


def _network(factors, biases):
    """A function in channels first: one convolution from the frame to maps (B, N, 8, 16)."""
    import jax
    import jax.numpy as jnp

    def fn(variables, x):
        dims = ("NCHW", "OIHW", "NCHW")
        y = jax.lax.conv_general_dilated(x, variables["w"], (4, 4), "VALID", dimension_numbers=dims)
        return y + variables["b"].reshape(1, -1, 1, 1)

    variables = {
        "w": jnp.asarray(_weight(factors), jnp.float32),
        "b": jnp.asarray(biases, jnp.float32),
    }
    return Network(fn, variables, SIZE, "test")


def make():
    """What `--fn` names."""
    network = _network([1, -1], [0, 0.5])
    return network.variables, network.fn


def number():
    """Not what `--fn` must name."""
    return 3


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """8 frames: a white cell that stays and then moves on, 16 to 48 pixels from the left."""
    folder = tmp_path_factory.mktemp("cells")
    for t in range(8):
        frame = np.zeros((*SIZE, 3), np.uint8)
        left = 16 if t < 5 else 48
        frame[8:12, left : left + 4] = 255
        assert cv2.imwrite(str(folder / f"{t:02}.png"), frame)
    return folder


def _compare(network, task, folder, threshold, preset=None, **kwargs):
    config = configuration(network, (None, threshold, 1))
    experiment = given(network, task, preset, config)
    weights = {"model": network.variables, "gates": {}}
    return agreement.compare(experiment, weights, Source(str(folder)), 0, 0, "plain", **kwargs)


def test_keypoints_of_heatmaps_agree_until_change_is_missed(frames):
    network = _network([1, 1, 0], [0, 0, 0])
    kept, missed = (_compare(network, "pose", frames, t) for t in (1e-3, 1e6))
    # The third map is empty: nothing sure, nothing to be found.
    assert kept.objects == 2 * 8
    assert kept.scores["mean"] == 1.0
    # The three frames after the jump are 32 pixels off, a twentieth of 64 is allowed.
    assert missed.scores["mean"] == pytest.approx(5 / 8)
    assert "PCK within 5% of the input against dense" in agreement.report(missed)
    assert missed.to_dict()["mean"] == pytest.approx(5 / 8)


def test_classes_of_pixels_agree_until_change_is_missed(frames):
    network = _network([1, -1], [0, 0.5])
    kept, missed = (_compare(network, "segmentation", frames, t) for t in (1e-3, 1e6))
    assert kept.scores == {"pixels": 1.0, "miou": 1.0}
    assert kept.objects == 8 * 8 * 16
    # In 3 of 8 frames 2 of 128 pixels differ; of the white class 5 of 11 are common.
    assert missed.scores["pixels"] == pytest.approx(1 - 3 * 2 / 1024)
    bare = (1024 - 11) / (1024 - 5)
    assert missed.scores["miou"] == pytest.approx((5 / 11 + bare) / 2)


def test_streams_keypoints_and_classes(frames, tmp_path):
    pose, classes = _network([1], [0]), _network([-1, 1], [0.5, 0])
    rows, pictures = {}, {}
    for network, task in ((pose, "pose"), (classes, "segmentation")):
        experiment = given(network, task, None, configuration(network, (None, 1e-3, 1)))
        params, _ = experiment.net().init(network.variables, experiment.frame())
        out = tmp_path / task
        stream(experiment, params, Source(str(frames)), out, Settings(engine="plain"))
        rows[task] = [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]
        image = cv2.imread(str(frames / "00.png"))[..., ::-1]
        pictures[task] = experiment.view(None, 0.2).draw(image, rows[task][0])
    # Cell 4, 2 of the heatmap, as in tasks.pose: times the stride.
    assert rows["pose"][0]["joints"] == [[16.0, 8.0]]
    assert rows["pose"][7]["joints"] == [[48.0, 8.0]]
    first = rows["segmentation"][0]
    assert first["shares"] == {"0": 0.992188, "1": 0.007812}  # 127 and 1 of 128
    assert first["map"] == {
        "size": [8, 16],
        "classes": [0, 1, 0],
        "lengths": [36, 1, 91],
    }
    # The overlay tints exactly the pixels of the cell that has class 1.
    image = cv2.imread(str(frames / "00.png"))[..., ::-1]
    changed = (pictures["segmentation"] != image).any(-1)
    wanted = np.zeros(SIZE, bool)
    wanted[8:12, 16:20] = True
    np.testing.assert_array_equal(changed, wanted)
    assert (pictures["pose"] != image).any()


def test_overlap_counts_by_hand():
    score = Overlap()
    wanted = np.array([0, 0, 1, 1]).reshape(1, 1, 2, 2)
    found = np.array([0, 1, 1, 2]).reshape(1, 1, 2, 2)
    score.update(found, {"classes": wanted, "valid": np.ones((1, 1), bool)})
    assert score.result() == {"pixels": 0.5, "miou": pytest.approx((1 / 2 + 1 / 3 + 0) / 3)}


def test_outputs_that_do_not_fit_a_task(frames):
    one = _network([1], [0])
    with pytest.raises(ValueError, match=r"`classes` \(=1\) must be at least 2"):
        _compare(one, "segmentation", frames, 1e-3)
    named = Network(lambda v, x: {"a": one.fn(v, x), "b": x}, one.variables, SIZE, "two")
    with pytest.raises(ValueError, match=r"`output` \(=None\) must name an output of shape"):
        _compare(named, "pose", frames, 1e-3)
    experiment = given(named, "pose", None, configuration(named), "a")
    assert experiment.task == Pixels(unit, output="a")
    with pytest.raises(ValueError, match="must be left out"):
        given(named, "detection", "yolox", configuration(named), "a")


def _labels(tmp_path, content):
    if isinstance(content, str):
        path = tmp_path / "gt.txt"
        path.write_text(content)
    else:
        path = tmp_path / "gt.json"
        path.write_text(json.dumps(content))
    return path


def test_average_precision_against_labels(detector, video, tmp_path):  # noqa: F811
    """The detector's boxes are known: 0 to 32 by 0 to 8, from frame 5 on 16 further right."""
    from tests.commands.test_brought import _experiment

    coco = {
        "images": [{"id": t + 1, "file_name": f"{t}.png"} for t in range(8)],
        "categories": [{"id": 9, "name": "Motorbike"}, {"id": 4, "name": "unheard of"}],
        "annotations": [
            {"image_id": t + 1, "category_id": 9, "bbox": [0 if t < 5 else 16, 0, 32, 8]}
            for t in range(8)
        ]
        + [{"image_id": 1, "category_id": 4, "bbox": [40, 20, 5, 5]}],
    }
    mot = "".join(f"{t + 1},1,{1 if t < 5 else 17},1,32,8,1,5,1\n" for t in range(8))
    for content in (coco, mot):
        labels = read_labels(_labels(tmp_path, content))
        found = []
        for threshold in (1e-2, 1e6):
            experiment, network = _experiment(detector, threshold)
            weights = {"model": network.variables, "gates": {}}
            found.append(
                agreement.compare(
                    experiment, weights, Source(str(video)), 0, 0, "plain", labels=labels
                ).against_labels["ap"]
            )
        assert found[0] == pytest.approx((1.0, 1.0))
        assert found[1][0] == pytest.approx(1.0)
        assert found[1][1] < 0.7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0,1,1,1,2,2\n", "frames from 1"),
        ("1,1,1,1,2\n", "must be frame,id,x,y"),
        ("1,1,1,1,0,2\n", "positive sides"),
        ("1,1,1,1,nan,2\n", "must be frame,id,x,y"),
        ("1,1,1,1,2,2,1,13,1\n", r"`class` \(=13\)"),
        ("\n", "it has none"),
        ({"images": []}, "annotations"),
        (
            {
                "images": [{"id": 1, "frame_id": 0}, {"id": 2}],
                "annotations": [],
                "categories": [],
            },
            "all 2 images or for none; 1 have it",
        ),
        (
            {
                "images": [{"id": 1}],
                "annotations": [{"image_id": 2, "category_id": 1, "bbox": [0, 0, 1, 1]}],
                "categories": [{"id": 1, "name": "car"}],
            },
            r"`annotations\[0\]`",
        ),
    ],
)
def test_labels_that_can_not_be_read(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_labels(_labels(tmp_path, content))


def test_mot_rows_that_do_not_count(tmp_path):
    text = "2,1,11,21,30,40,0,7,1\n2,2,1,1,5,5,0,3,1\n3,1,1,1,5,5\n"
    labels = read_labels(_labels(tmp_path, text))
    assert [len(labels.frames[t].boxes) for t in range(3)] == [0, 0, 1]
    # A static person is a region; a car that does not count is nothing.
    np.testing.assert_array_equal(labels.frames[1].ignored, [[10, 20, 40, 60]])
    np.testing.assert_array_equal(labels.frames[2].boxes, [[0, 0, 5, 5]])


def test_labels_need_a_detector_and_its_classes(frames, detector, tmp_path):  # noqa: F811
    from tests.commands.test_brought import _experiment

    labels = read_labels(_labels(tmp_path, "1,1,1,1,5,5\n"))
    with pytest.raises(ValueError, match="must come with --task detection"):
        _compare(_network([1], [0]), "pose", frames, 1e-3, labels=labels)
    experiment, network = _experiment(detector)
    weights = {"model": network.variables, "gates": {}}
    with pytest.raises(ValueError, match="must annotate frames of those compared"):
        agreement.compare(experiment, weights, Source(str(frames)), 0, 4, "plain", labels=labels)


def test_commands_take_a_function(frames, tmp_path, capsys):
    where = f"{__name__}:make"
    assert cli.main(["macs", "--fn", where, "--size", "32", "64"]) == 0
    # 8 x 16 sites, 2 channels, 4 x 4 x 3 weights.
    assert f"{8 * 16 * 2 * 48 / 1e6:.3f}"[:5] in capsys.readouterr().out
    assert cli.main(["macs", "--fn", where]) == 2
    assert "`size` (=None) must be height and width" in capsys.readouterr().err
    assert cli.main(["macs", "--fn", f"{__name__}:number", "--size", "32", "64"]) == 2
    assert "it returned a int" in capsys.readouterr().err


def test_calibration_scores_agreement_of_every_task(detector):  # noqa: F811
    """Outputs come as (T, B, ...): presets and tasks read those of one frame."""
    import jax

    from tests.commands.test_brought import _experiment

    pose, classes = _network([1, 1], [0, 0]), _network([1, -1], [0, 0.5])
    experiments = [
        given(pose, "pose", None, configuration(pose)),
        given(classes, "segmentation", None, configuration(classes)),
        _experiment(detector)[0],
    ]
    images = np.zeros((3, 1, *SIZE, 3), np.uint8)
    images[:, :, :16, 16:32] = 255
    for experiment in experiments:
        run = jax.vmap(lambda x, e=experiment: e.predict(e.model.variables, x))
        outputs = run(images)
        score = calibrate.agreement(experiment)
        assert score(outputs, outputs) == pytest.approx(1.0)
        assert score(run(np.roll(images, 32, 3)), outputs) < 0.7


def test_eval_takes_a_function(frames, tmp_path):
    """In a process of its own: flags are read once."""
    command = [sys.executable, "-m", "skipconv_jax", "eval", "--fn", f"{__name__}:make"]
    command += ["--size", "32,64", "--task", "segmentation", "--video", str(frames), "--json"]
    command += ["--workdir", str(tmp_path), "--engine", "plain", "--block", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["miou"] == 1.0
    assert found["reduction"] > 2
    assert json.loads((tmp_path / "agreement.json").read_text()) == found
