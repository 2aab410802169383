"""What a detection configuration has beside what all have (`config.base`)."""

from ml_collections import ConfigDict

from skipconv_jax.config import PHASE


def extend(config: ConfigDict) -> None:
    """Adds the task's fields and defaults to a configuration."""
    # Fields of `data.detection_pipeline.Labels`.
    config.data.labels = ConfigDict(
        {
            "agnostic": True,
            "drop_ignored": False,
            "hide_ignored": False,
            "max_boxes": 128,
            "max_ignored": 16,
        }
    )
    config.model = ConfigDict({"name": "efficientdet"})
    # Fields of `DetectionTask` but the network's size, levels and anchor scale.
    config.detection = ConfigDict({"candidates": 5000, "keep": 100}, type_safe=False)
    # Deep Feature Flow, a baseline: `width` of its flow network; `pairs` of a clip's first and
    # another frame per step; `photometric`: weight of an unsupervised loss of the flow.
    config.flow = ConfigDict(
        PHASE | {"clip_length": 10, "width": 8, "pairs": 4, "photometric": 0.0}
    )
    config.eval.drop_ignored = False  # whether what ignored regions cover does not count
