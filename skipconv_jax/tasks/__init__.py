"""Tasks, one folder each: targets, losses, metrics, the experiment of a config, a view of a stream.

`build(config)` makes the `Experiment` that every command takes. A folder here is a task, and so is
a `module:function` that a config names.
"""

from skipconv_jax.tasks.base import DENSE, GATED, Box, Experiment, Scorer, View
from skipconv_jax.tasks.registry import build

__all__ = ["DENSE", "GATED", "Box", "Experiment", "Scorer", "View", "build"]
