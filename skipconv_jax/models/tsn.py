"""Temporal segment networks: one image network on a few frames of a video, scores averaged.

Source: Wang et al., "Temporal Segment Networks", ECCV 2016; the paper's Table 5 with a ResNet-101.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


def consensus(logits: jax.Array) -> jax.Array:
    """Mean over the segments: (B, T, classes) -> (B, classes)."""
    return jnp.mean(logits, axis=1)


class TSN(nn.Module):
    """Clips (B, T, H, W, 3) of T segments to logits (B, classes).

    Its variables are those of the backbone, so one checkpoint serves the video network, which is
    dense, and the frame network, which `skip` runs from segment to segment.

    Attributes:
        backbone: image network, `(B, H, W, 3) -> (B, classes)`, e.g. `resnet101(classes=21)`.

    Raises:
        ValueError: (when called) an input that is no batch of clips.
    """

    backbone: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.backbone)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits of normalised clips `x`; `train` uses the statistics of `x`."""
        if x.ndim != 5:
            raise ValueError(
                f"`x` (shape {x.shape}) must be (B, T, H, W, C); use x[:, None] for single frames"
            )
        logits = self.backbone(x.reshape(-1, *x.shape[2:]), train)
        return consensus(logits.reshape(*x.shape[:2], -1))
