"""Input scales of networks that are no detectors: [0, 1], ImageNet's, [-1, 1]."""

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.presets.base import Pixels


def unit(frames: jax.Array) -> jax.Array:
    """RGB (B, H, W, 3) uint8 to RGB / 255 (B, 3, H, W) float32."""
    return frames.astype(jnp.float32).transpose(0, 3, 1, 2) * np.float32(1 / 255)


def imagenet(frames: jax.Array) -> jax.Array:
    """(RGB / 255 - mean) / deviation of ImageNet, (B, 3, H, W), as torchvision and timm train."""
    mean = np.asarray([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
    deviation = np.asarray([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)
    return (unit(frames) - mean) * (1 / deviation)


def symmetric(frames: jax.Array) -> jax.Array:
    """RGB / 127.5 - 1, (B, 3, H, W)."""
    return frames.astype(jnp.float32).transpose(0, 3, 1, 2) * np.float32(1 / 127.5) - 1


UNIT, IMAGENET, SYMMETRIC = Pixels(unit), Pixels(imagenet), Pixels(symmetric)
