"""Which samples of a common order each process of a training prepares."""

from collections.abc import Sequence
from typing import Any

from skipconv_jax.extras import required

with required():
    import grain


class Share(grain.MapDataset):
    """The part of every batch that one process prepares.

    Of a batch of `count` times `batch` samples process i has the i-th block of `batch`: put one
    after the other, the blocks are the batch that one process alone would prepare, in its order. So
    the n-th batch is the same for any number of processes.

    Args:
      samples: in the common order.
      batch: of this process.
      process: (index, count).
    """

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, samples: Any, batch: int, process: tuple[int, int]) -> None:
        super().__init__(samples)
        index, count = process
        if not 0 <= index < count:
            raise ValueError(f"`process` (={process}) must be (index, count), 0 <= index < count.")
        self._batch, self._index, self._count = batch, index, count

    def __len__(self) -> int:
        return len(self._parent) // (self._batch * self._count) * self._batch

    def _place(self, index: int) -> int:
        number, within = divmod(index, self._batch)
        return (number * self._count + self._index) * self._batch + within

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        return self._parent[self._place(index)]

    def _getitems(self, indices: Sequence[int]) -> Any:
        return self._parent._getitems([self._place(index) for index in indices])
