"""Objects in the frames of a video: anchors, focal and Huber loss, COCO's AP."""

from skipconv_jax.tasks.detection.anchors import encode, make_anchors
from skipconv_jax.tasks.detection.losses import DetectionTask, focal_loss, huber_loss
from skipconv_jax.tasks.detection.metrics import (
    AveragePrecision,
    Detections,
    add_detections,
    evaluate_detection,
)
from skipconv_jax.tasks.detection.predictions import Predictions, unpack
from skipconv_jax.tasks.detection.targets import Targets

__all__ = [
    "AveragePrecision",
    "DetectionTask",
    "Detections",
    "Predictions",
    "Targets",
    "add_detections",
    "encode",
    "evaluate_detection",
    "focal_loss",
    "huber_loss",
    "make_anchors",
    "unpack",
]
