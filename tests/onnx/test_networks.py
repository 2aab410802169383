"""The two real networks: as onnxruntime computes them, over streams, and skipped."""

from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest

from skipconv_jax import skip
from skipconv_jax.onnx import load
from skipconv_jax.ops import InputNormGate

NETWORKS = {"FastestDet": (352, 1 / 255), "yolox_nano": (416, 1.0)}


@pytest.fixture(scope="module")
def frames(shared_dir: Path) -> np.ndarray:
    """Two BGR frames of a real video, persons on both, (2, H, W, 3)."""
    video = cv2.VideoCapture(str(shared_dir / "data/video/one-by-one-person-detection.mp4"))
    found = []
    for at in (400, 600):
        video.set(cv2.CAP_PROP_POS_FRAMES, at)
        ok, frame = video.read()
        assert ok
        found.append(frame)
    return np.stack(found)


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def network(request: pytest.FixtureRequest, shared_dir: Path, frames: np.ndarray) -> Any:
    """(path, variables, fn, input (2, 3, H, W))."""
    path = shared_dir / f"models/{request.param}.onnx"
    if not path.is_file():
        pytest.skip("needs the networks in ../shared/models")
    size, scale = NETWORKS[request.param]
    x = np.stack([cv2.resize(f, (size, size)) for f in frames]).transpose(0, 3, 1, 2)
    return path, *load(path), np.ascontiguousarray(x, np.float32) * np.float32(scale)


def test_equals_onnxruntime_for_every_stream(network: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path, variables, fn, x = network
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    # The file's batch is 1; two streams go through the function at once.
    want = np.concatenate([session.run(None, {name: x[i : i + 1]})[0] for i in range(2)])
    got = jax.jit(fn)(variables, x)
    assert np.abs(want[0] - want[1]).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_names_and_macs_are_the_files(network: Any) -> None:
    path, variables, fn, x = network
    table = skip(fn, gate=InputNormGate(0.0)).table(variables, x[:1])
    convolutions, macs = {"FastestDet": (70, 121e6), "yolox_nano": (113, 510e6)}[path.stem]
    assert len(table.rows) == convolutions
    assert table.macs == pytest.approx(macs, rel=0.07)
    assert all(row.name in variables for row in table.rows)
    assert not [row for row in table.rows if row.dense_because]
