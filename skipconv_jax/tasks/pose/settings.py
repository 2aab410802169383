"""What a pose configuration has beside what all have (`config.base`)."""

from ml_collections import ConfigDict


def extend(config: ConfigDict) -> None:
    """Adds the task's fields and defaults to a configuration."""
    config.sigma = 2.0  # of the target Gaussians, in heatmap pixels
    # `subset`: 'sub' for the 316 clips of the paper; `margin`: of crops around a person's box.
    # `augmentation`: the paper's scale, rotation and flip where it is None.
    config.data.update({"root": "data/jhmdb", "subset": "full", "margin": 1.25})
    config.model = ConfigDict({"name": "hrnet", "joints": 15})
    config.eval.convention = "extent"  # of PCK, or 'pixels'; see tasks.pose.metrics.Pck
