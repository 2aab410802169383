"""Actions of videos: cross-entropy of every frame, consensus of the video, top-1."""

from skipconv_jax.tasks.classification.losses import ClassificationTask
from skipconv_jax.tasks.classification.metrics import Top1

__all__ = ["ClassificationTask", "Top1"]
