"""What training asks of pose estimation: the squared error of heatmaps, weighted by visibility."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from skipconv_jax.tasks.pose.targets import decode, heatmap_targets


def heatmap_loss(heatmaps: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """`mean_j 1/2 mean_{b, p} w_bj^2 (y_bpj - t_bpj)^2`, a float32 scalar.

    Args:
      heatmaps: predictions `(..., h, w, J)`.
      targets: `(..., h, w, J)`.
      weights: `(..., J)`, 0 or 1; a joint of weight 0 costs nothing and still counts in the mean.

    Raises:
      ValueError: shapes differ.
    """
    if heatmaps.shape != targets.shape:
        raise ValueError(
            f"`heatmaps` (of shape {heatmaps.shape}) must have the shape of `targets` "
            f"({targets.shape}); check the stride and the number of joints."
        )
    if weights.shape != (*heatmaps.shape[:-3], heatmaps.shape[-1]):
        raise ValueError(
            f"`weights` (of shape {weights.shape}) must have shape (..., J), here "
            f"{(*heatmaps.shape[:-3], heatmaps.shape[-1])}."
        )
    error = (heatmaps.astype(jnp.float32) - targets) * weights[..., None, None, :]
    return 0.5 * jnp.mean(error**2)


@dataclasses.dataclass(frozen=True)
class PoseTask:
    """What training asks of a task; targets are made on the device, from joints.

    Attributes:
      stride: input pixels per heatmap pixel.
      sigma: standard deviation of the target Gaussian in heatmap pixels.
    """

    stride: int = 4
    sigma: float = 2.0

    def losses(self, outputs: jax.Array, targets: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """`{'heatmap': scalar}` from heatmaps `(..., h, w, J)` and targets `joints`, `visible`."""
        height, width = outputs.shape[-3:-1]
        maps, weights = heatmap_targets(
            targets["joints"], targets["visible"], height, width, self.stride, self.sigma
        )
        return {"heatmap": heatmap_loss(outputs, maps, weights)}

    def predict(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Joints `(..., J, 2)` in input pixels and confidence `(..., J)`."""
        return decode(outputs, self.stride)
