"""Before any tuning: what uniform thresholds would cost on a clip, and whether skipping pays."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from skipconv_jax.tuning.scene import Scene
from skipconv_jax.tuning.trials import Trials, thresholds

Agreement = Callable[[Any, Any], float]
"""`(what was read of the skipped network, of the dense one) -> agreement in [0, 1]`."""

THRESHOLDS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1)
# Disagreement up to which a threshold counts as safe, about a point of AP. Not the agreement: in a
# minute of video a class that is seen twice moves AP by tens of points.
_SAFE = 0.03
# Below so little of saved time the seconds of setting it up are worth more.
_PAYS = 1.15


@dataclasses.dataclass(frozen=True)
class Row:
    """One uniform threshold.

    Attributes:
      threshold: of all layers.
      macs: share of the dense network's, the reference frame left out.
      ms: per frame on this machine.
      loss: disagreement, see `Trials`.
      agreement: with the dense network, in [0, 1]; NaN for a task without a score.
    """

    threshold: float
    macs: float
    ms: float
    loss: float
    agreement: float

    @property
    def safe(self) -> bool:
        """Whether it keeps what the dense network says."""
        return self.loss <= _SAFE


@dataclasses.dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
      rows: by rising threshold, after `dense`.
      dense: frames that are computed whole, on the same engine.
      scene: of the clip.
      engine: that ran it, and why.
    """

    rows: tuple[Row, ...]
    dense: Row
    scene: Scene
    engine: str

    @property
    def best(self) -> Row | None:
        """The fastest safe threshold; None where none is."""
        return min((row for row in self.rows if row.safe), key=lambda row: row.ms, default=None)

    @property
    def pays(self) -> bool:
        """Whether that saves time worth having."""
        return self.best is not None and self.dense.ms / self.best.ms >= _PAYS

    def verdict(self) -> str:
        """In a sentence or two."""
        best, why = self.best, self.scene.why_not()
        because = f": {why}" if why else ""
        if best is None:
            return (
                f"Skipping does not pay here{because}; every threshold tried changes what the "
                "network says. Run it dense, or look at smaller thresholds."
            )
        kept = f", disagreement {best.loss:.3f}"
        figures = (
            f"{1 / max(best.macs, 1e-6):.1f}x fewer multiply-accumulates and "
            f"{self.dense.ms / best.ms:.2f}x the speed at a threshold of {best.threshold:g}{kept}"
        )
        if not self.pays:
            return f"Skipping does not pay here{because}; at best {figures}. Run it dense."
        careful = f" But {why}: it will vary with the scene." if why else ""
        return f"Skipping pays: {figures} before any tuning.{careful}"


def probe(
    trials: Trials,
    scene: Scene,
    *,
    agreement: Agreement | None = None,
    tried: Sequence[float] = THRESHOLDS,
) -> Probe:
    """Runs a clip at uniform thresholds.

    Args:
      trials: of a network whose gates are norm gates.
      scene: of the same frames.
      agreement: of what `trials` reads; None where there is no score.
      tried: thresholds.

    Raises:
      ValueError: thresholds that are not positive.
    """
    if not tried or min(tried) <= 0:
        raise ValueError(f"`tried` (={tuple(tried)}) must be positive thresholds.")
    wanted = trials.dense()

    def row(threshold: float) -> Row:
        gates = thresholds(trials.names, threshold)
        seen, read = trials.read(gates)
        agreed = math.nan if agreement is None else agreement(read, wanted)
        share = seen.macs / trials.dense_macs
        return Row(threshold, share, trials.milliseconds(gates, 1), seen.loss, agreed)

    dense = Row(0.0, 1.0, trials.whole_milliseconds(), 0.0, 1.0 if agreement else math.nan)
    plan = trials.plan
    return Probe(tuple(row(t) for t in sorted(tried)), dense, scene, f"{plan.engine} ({plan.why})")
