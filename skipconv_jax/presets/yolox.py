"""YOLOX: BGR levels 0 to 255, one factor, padded with 114; outputs per cell of strides 8, 16, 32.

Source: Ge et al., 2021, as its authors export it without decoding in the graph.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.presets.base import Boxes, Preset
from skipconv_jax.presets.coco import COCO

STRIDES = (8, 16, 32)


def prepare(frames: jax.Array) -> jax.Array:
    """RGB (B, H, W, 3) uint8 to BGR (B, 3, H, W) float32."""
    return frames[..., ::-1].astype(jnp.float32).transpose(0, 3, 1, 2)


def cells(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of every cell, (N, 2), and its stride, (N, 1), the finest level first."""
    at, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: size[0] // stride, : size[1] // stride]
        at.append(np.stack([x, y], -1).reshape(-1, 2))
        strides.append(np.full((at[-1].shape[0], 1), stride))
    return np.concatenate(at).astype(np.float32), np.concatenate(strides).astype(np.float32)


def decode(outputs: Any, size: tuple[int, int]) -> Boxes:
    """(B, N, 5 + classes): centre (xy + cell) stride, size exp(wh) stride, objectness, classes."""
    at, stride = cells(size)
    centre = (outputs[..., :2] + at[None]) * stride[None]
    half = jnp.exp(outputs[..., 2:4]) * stride[None] / 2
    scores = outputs[..., 4:5] * outputs[..., 5:]
    return Boxes(
        jnp.concatenate([centre - half, centre + half], -1),
        scores.max(-1),
        scores.argmax(-1).astype(jnp.int32),
    )


YOLOX = Preset(COCO, False, (114, 114, 114), prepare, decode)
