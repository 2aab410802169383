"""Warped residuals, section 3.3: r_t = x_t - T(x_{t-1}), z_t = T~(z_{t-1}) + w * r_t (Eq. 10-11).

    warp = Warp.make(net, variables, frame)                  # geometry of every layer, once
    motion = phase_correlation(previous, frame)              # or homography, flow, your own
    y, state = net.apply(params, warp(state, motion), frame)

The network and its gates know nothing of it: before a frame, the state of every layer is moved to
where the frame has moved, at that layer's resolution.
"""

from skipconv_jax.warp.block_matching import BlockMatching
from skipconv_jax.warp.estimate import (
    ESTIMATORS,
    dis_flow,
    phase_correlation,
    phase_correlation_macs,
    tracked_homography,
)
from skipconv_jax.warp.layers import Warp, warp_layer, warp_reference
from skipconv_jax.warp.loss import equivariance_loss
from skipconv_jax.warp.motion import Carried, Flow, Homography, Motion, Translation, resample

__all__ = [
    "ESTIMATORS",
    "BlockMatching",
    "Carried",
    "Flow",
    "Homography",
    "Motion",
    "Translation",
    "Warp",
    "dis_flow",
    "equivariance_loss",
    "phase_correlation",
    "phase_correlation_macs",
    "resample",
    "tracked_homography",
    "warp_layer",
    "warp_reference",
]
