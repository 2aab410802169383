"""FastestDet: BGR in [0, 1], stretched over the input; one box per cell of stride 16.

Source: the authors' repository, dog-qiuqiu/FastestDet.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.presets.base import Boxes, Preset
from skipconv_jax.presets.coco import COCO

_LEAST = np.float32(1e-12)


def prepare(frames: jax.Array) -> jax.Array:
    """RGB (B, H, W, 3) uint8 to BGR / 255 (B, 3, H, W) float32."""
    return frames[..., ::-1].astype(jnp.float32).transpose(0, 3, 1, 2) * np.float32(1 / 255)


def decode(outputs: Any, size: tuple[int, int]) -> Boxes:
    """(B, 5 + classes, h, w): objectness, tanh(dx), tanh(dy), sigmoid(w), sigmoid(h), classes.

    Centre (tanh(d) + cell) / (w, h), size sigmoid(.), both in parts of the frame; the score is
    objectness^0.6 class^0.4, which is high: the authors show boxes from 0.65 on.
    """
    batch, _, h, w = outputs.shape
    rows = outputs.reshape(batch, -1, h * w).swapaxes(1, 2)
    y, x = np.mgrid[:h, :w]
    cell = np.stack([x, y], -1).reshape(1, -1, 2).astype(np.float32)
    parts = np.asarray([[[w, h]]], np.float32)
    pixels = np.asarray([[[size[1], size[0]]]], np.float32)
    centre = (jnp.tanh(rows[..., 1:3]) + cell) / parts * pixels
    half = jax.nn.sigmoid(rows[..., 3:5]) * pixels / 2
    classes = rows[..., 5:]
    # Powers below 1 have no slope at 0, which a softmax may reach, and `fit` needs one.
    objectness, best = (jnp.maximum(p, _LEAST) for p in (rows[..., 0], classes.max(-1)))
    return Boxes(
        jnp.concatenate([centre - half, centre + half], -1),
        objectness**0.6 * best**0.4,
        classes.argmax(-1).astype(jnp.int32),
    )


FASTESTDET = Preset(COCO, True, (0, 0, 0), prepare, decode, sure=0.65)
