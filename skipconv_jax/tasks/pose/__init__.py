"""Pose of one person per clip: joints as heatmaps, PCK. Source: Sun et al., CVPR 2019 (HRNet)."""

from skipconv_jax.data.skeleton import BONES, JOINTS, MIRROR, from_matlab, to_matlab
from skipconv_jax.tasks.pose.losses import PoseTask, heatmap_loss
from skipconv_jax.tasks.pose.metrics import CONVENTIONS, GROUPS, WITHOUT_TORSO, Pck
from skipconv_jax.tasks.pose.targets import decode, heatmap_targets

__all__ = [
    "BONES",
    "CONVENTIONS",
    "GROUPS",
    "JOINTS",
    "MIRROR",
    "WITHOUT_TORSO",
    "Pck",
    "PoseTask",
    "decode",
    "from_matlab",
    "heatmap_loss",
    "heatmap_targets",
    "to_matlab",
]
