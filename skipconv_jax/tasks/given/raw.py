"""The task `raw`: outputs of any kind, of which error and cost are known."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from skipconv_jax.tasks.base import Box, Scorer, View, whole_frames
from skipconv_jax.tasks.given.base import GivenExperiment
from skipconv_jax.tasks.given.view import RawView


@dataclasses.dataclass(frozen=True)
class RawGiven(GivenExperiment):
    """A network whose outputs nobody reads."""

    figures: ClassVar = ()

    def read(self, outputs: Any) -> Any:
        """The outputs."""
        return outputs

    def scorer(self) -> Scorer:
        """None."""
        raise ValueError("`task` (='raw') has no score; name a --task and a --preset.")

    def asked(self, labels: Mapping[str, np.ndarray]) -> int:
        """Nothing."""
        return 0

    def view(self, box: Box | None, min_score: float) -> View:
        """Whole frames, stretched."""
        whole_frames(box)
        return RawView(self.size)
