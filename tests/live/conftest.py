"""Clips, cameras and servers that the tests of live cameras share."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest


def missing(what: str) -> None:
    """A server the tests need is absent: CI installs it, and must not go on without."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must have {what}; .ci/run installs it")
    pytest.skip(f"needs {what}, of Debian's packages: see .ci/run")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def until(true, seconds=10.0, step=0.02):
    """Waits for a condition; what it returns, or fails."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(step)
    raise AssertionError(f"not within {seconds} s")


def write_clip(
    path, frames=20, size=(96, 128), gop=5, form=None, rate=10, codec="libx264", slices=1
):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (size[0], size[1] + frames, 3), np.uint8)
    texture = cv2.GaussianBlur(noise, (0, 0), 2)
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p" if codec == "libx264" else "yuvj420p"
        if codec == "libx264":
            stream.options = {"g": str(gop), "bf": "0", "sc_threshold": "0", "slices": str(slices)}
        for t in range(frames):
            image = np.ascontiguousarray(texture[:, t : t + size[1]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


SCRIPT = Path(__file__).with_name("rtsp_server.py")
PYTHON = "/usr/bin/python3"  # the bindings of GStreamer are the system's


@contextlib.contextmanager
def rtsp_server(port, *arguments, rate=20):
    """A process that serves until the end of the block, or until it is killed."""
    command = [PYTHON, str(SCRIPT), str(port), str(rate), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def rtsp():
    """`rtsp_server`, where GStreamer's is installed."""
    check = "import gi; gi.require_version('GstRtspServer', '1.0')"
    if (
        not shutil.which(PYTHON)
        or subprocess.run([PYTHON, "-c", check], capture_output=True, check=False).returncode
    ):
        missing("GStreamer's RTSP server")
    return rtsp_server


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """20 frames of 128x96, a key frame every 5, as a byte stream."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.h264", form="h264")
