"""What a configuration of clip classification has beside what all have (`config.base`)."""

from ml_collections import ConfigDict


def extend(config: ConfigDict) -> None:
    """Adds the task's fields and defaults to a configuration."""
    # `subset`: 'sub' for JHMDB's 316 clips; `short_side`: frames are resized to it before the crop.
    config.data.update({"root": "data/jhmdb", "subset": "full", "short_side": 256})
    config.model = ConfigDict({"name": "resnet"})
    # Frames of a clip that are looked at, evenly spread: each count is a row of the report.
    config.eval.segments = (25, 6)
