"""The commands that README and docs print for a brought network run as they are printed.

In a folder with stand-ins of the files they name: a video of small frames, two detectors with the
outputs of YOLOX and FastestDet. tests/test_docs.py checks every command's flags; trainings, `make`
and the paper's tables take minutes to hours and are run small by the tests of `ELSEWHERE`.
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys

import av
import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.onnx.graphs import model, node
from tests.test_docs import PAGES, SHELL

pytest.importorskip("onnx")
FRAMES = 400
# Command -> the test that runs it on something small, or what runs it in CI.
_PLANNED = "skipconv stream VIDEO --onnx yolox_nano.onnx --preset yolox --gate_plan"
ELSEWHERE = {
    _PLANNED: "tests/commands/test_brought.py",
    "make": ".ci/run",
    "pip": ".ci/clean.py",
    ".ci/": ".ci/clean.py",
    "python -m paper.all": "tests/paper/test_options.py",
    "python train.py": "tests/commands/test_commands.py",
    "python eval.py": "tests/commands/test_detection_commands.py",
    "python stream.py": "tests/commands/test_commands.py",
    "skipconv train": "tests/commands/test_commands.py",
    "skipconv eval --config": "tests/commands/test_commands.py",
    "skipconv stream VIDEO --config": "tests/commands/test_commands.py",
    "skipconv batch": "tests/live/test_batch.py",
    "skipconv calibrate": "tests/commands/test_calibrate.py",
    "skipconv fit": "tests/tuning/test_fit.py",
    "skipconv stream VIDEO --onnx FastestDet.onnx": "tests/tuning/test_fit.py",
    "skipconv synthetic_pose": "tests/data/test_synthetic_pose.py",
    "skipconv demo": "tests/commands/test_cli.py",
    "skipconv serve": "tests/live/test_service.py",
    "python -m skipconv_jax.native.build": "tests/native/test_sanitizers.py",
    "cc ": "tests/native/test_sanitizers.py",
    "ffmpeg": "tests/native/test_sanitizers.py",
}


def _commands():
    for page in PAGES:
        for block in SHELL.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                text = " ".join(shlex.split(re.sub(r"\[--[^]]*\]", "", line), comments=True))
                if text:
                    yield page.relative_to(REPOSITORY).as_posix(), text


ALL = list(_commands())
HERE = sorted({text for _, text in ALL if not text.startswith(tuple(ELSEWHERE))})


def test_every_other_command_has_its_test():
    for command, where in ELSEWHERE.items():
        assert any(text.startswith(command) for _, text in ALL), f"nobody prints {command!r}"
        assert (REPOSITORY / where).exists(), where


def _yolox():
    """A convolution per stride, its maps as rows `(1, N, 85)`."""
    rng, nodes, weights = np.random.default_rng(0), [], {}
    for s in (8, 16, 32):
        weights[f"w{s}"] = rng.normal(0, 1e-4, (85, 3, s, s)).astype(np.float32)
        weights[f"flat{s}"] = np.array([1, 85, -1], np.int64)
        nodes.append(node("Conv", ["x", f"w{s}"], [f"map{s}"], strides=[s, s]))
        nodes.append(node("Reshape", [f"map{s}", f"flat{s}"], [f"rows{s}"]))
    nodes.append(node("Concat", ["rows8", "rows16", "rows32"], ["all"], axis=2))
    nodes.append(node("Transpose", ["all"], ["y"], perm=[0, 2, 1]))
    return model(nodes, weights, (1, 3, 64, 64)).SerializeToString()


def _fastestdet():
    """One convolution of stride 16: `(1, 85, h, w)`."""
    kernel = np.random.default_rng(0).normal(0, 0.01, (85, 3, 16, 16)).astype(np.float32)
    nodes = [node("Conv", ["x", "w"], ["y"], strides=[16, 16])]
    return model(nodes, {"w": kernel}, (1, 3, 64, 64)).SerializeToString()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the commands name, small."""
    folder = tmp_path_factory.mktemp("printed")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p")
        for t in range(FRAMES):
            frame = np.zeros((64, 64, 3), np.uint8)
            frame[16:32, t % 48 : t % 48 + 16] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    (folder / "one-by-one-person-detection.mp4").write_bytes((folder / "clip.mp4").read_bytes())
    (folder / "VIDEO").symlink_to("clip.mp4")
    (folder / "yolox_nano.onnx").write_bytes(_yolox())
    (folder / "FastestDet.onnx").write_bytes(_fastestdet())
    return folder


@pytest.mark.parametrize("command", HERE)
def test_it_runs_as_printed(command, folder):
    program, *rest = shlex.split(command)
    assert program in ("skipconv", "python"), f"run {command!r} here, or name its test in ELSEWHERE"
    head = [sys.executable, "-m", "skipconv_jax"] if program == "skipconv" else [sys.executable]
    with contextlib.suppress(FileExistsError):
        (folder / "configs").symlink_to(REPOSITORY / "configs")
    done = subprocess.run(
        [*head, *rest], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    # 3 is an answer: on a network this small skipping may not pay.
    answers = (0, 3) if rest[0] == "probe" else (0,)
    assert done.returncode in answers, done.stderr[-3000:]
    assert done.stdout
