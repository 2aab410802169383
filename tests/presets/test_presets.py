"""Decoders by their own equations, turned round: a box that is written in is read out."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.presets import FASTESTDET, PRESETS, YOLOX, Preset, preset


def test_names_are_cocos() -> None:
    assert len(YOLOX.classes) == len(FASTESTDET.classes) == 80
    assert YOLOX.classes[0] == "person"
    assert YOLOX.classes[36] == "skateboard"
    assert YOLOX.classes[79] == "toothbrush"


SEEN = {
    "yolox": (250, 20, 10),
    "fastestdet": (250 / 255, 20 / 255, 10 / 255),
    "unit": (10 / 255, 20 / 255, 250 / 255),
    "imagenet": (
        (10 / 255 - 0.485) / 0.229,
        (20 / 255 - 0.456) / 0.224,
        (250 / 255 - 0.406) / 0.225,
    ),
    "symmetric": (10 / 127.5 - 1, 20 / 127.5 - 1, 250 / 127.5 - 1),
}
"""What becomes of the RGB pixel (10, 20, 250)."""


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_networks_see_their_pixels_channels_first(name: str) -> None:
    frame = np.zeros((1, 2, 4, 3), np.uint8)
    frame[0, 1, 3] = (10, 20, 250)
    x = np.asarray(PRESETS[name].prepare(jnp.asarray(frame)))
    assert x.shape == (1, 3, 2, 4)
    np.testing.assert_allclose(x[0, :, 1, 3], SEEN[name], rtol=1e-5)


# A cell of each stride of YOLOX at 64x96: 8x12, 4x6 and 2x3 cells, one behind the other.
@pytest.mark.parametrize(("stride", "row", "column", "first"), [(8, 5, 7, 0), (32, 1, 2, 120)])
def test_yolox(stride: int, row: int, column: int, first: int) -> None:
    columns = 96 // stride
    outputs = np.zeros((2, 126, 85), np.float32)
    at = first + row * columns + column
    outputs[1, at, :5] = 0.25, 0.5, math.log(3), math.log(1.5), 0.8
    outputs[1, at, 5 + 17] = 0.5
    found = YOLOX.decode(jnp.asarray(outputs), (64, 96))
    x, y = (column + 0.25) * stride, (row + 0.5) * stride
    w, h = 3 * stride, 1.5 * stride
    want = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    np.testing.assert_allclose(found.corners[1, at], want, rtol=1e-5)
    assert found.scores[1, at] == pytest.approx(0.4)
    assert found.labels[1, at] == 17
    assert float(found.scores[0].max()) == 0


def test_fastestdet() -> None:
    outputs = np.zeros((1, 85, 3, 4), np.float32)
    outputs[0, :5, 2, 1] = 0.5, math.atanh(0.25), math.atanh(-0.5), 0.0, math.log(0.2 / 0.8)
    outputs[0, 5 + 79, 2, 1] = 0.9
    found = FASTESTDET.decode(jnp.asarray(outputs), (96, 160))
    x, y, w, h = (1 + 0.25) / 4 * 160, (2 - 0.5) / 3 * 96, 0.5 * 160, 0.2 * 96
    at = 2 * 4 + 1
    want = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    np.testing.assert_allclose(found.corners[0, at], want, rtol=1e-5)
    assert found.scores[0, at] == pytest.approx(0.5**0.6 * 0.9**0.4)
    assert found.labels[0, at] == 79


def test_presets_of_anybody() -> None:
    assert isinstance(preset("skipconv_jax.presets:YOLOX"), Preset)
    with pytest.raises(
        ValueError, match=r"`preset` \(='yolov9'\) must be one of fastestdet, imagenet, .*, yolox"
    ):
        preset("yolov9")
    with pytest.raises(
        ValueError, match=r"must name a skipconv_jax\.presets\.Preset or Pixels, not"
    ):
        preset("skipconv_jax.presets.coco:COCO")
