"""AP of what a detector says of batches; it needs nothing that trains or reads data."""

from typing import Any

from skipconv_jax.tasks.base import Batch
from skipconv_jax.tasks.detection.metrics import AveragePrecision, add_detections
from skipconv_jax.tasks.detection.predictions import Predictions, unpack


class DetectionScorer:
    """AP over the annotated frames that are no padding."""

    def __init__(self, precision: AveragePrecision) -> None:
        self._precision = precision

    def update(self, seen: Any, batch: Batch) -> None:
        """Adds a batch."""
        found = unpack(Predictions(*seen))
        add_detections(self._precision, found, batch)

    def result(self) -> dict[str, float]:
        """As `AveragePrecision.result`."""
        return self._precision.result()
