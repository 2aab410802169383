"""Which worker has which stream: by what streams were measured to cost."""

from collections.abc import Collection, Hashable, Mapping
from typing import TypeVar

W = TypeVar("W", bound=Hashable)


def placed(costs: Mapping[str, float], loads: Mapping[W, float]) -> dict[str, W]:
    """Streams onto workers: the dearest first, each to the least loaded.

    Args:
      costs: of the streams to place, shares of a worker's time.
      loads: of the workers that may have them.
    """
    sums, made = dict(loads), {}
    for name, cost in sorted(costs.items(), key=lambda item: -item[1]):
        worker = min(sums, key=lambda w: sums[w])
        made[name] = worker
        sums[worker] += cost
    return made


def moved(
    costs: Mapping[str, float], owners: Mapping[str, W], new: W, workers: Collection[W]
) -> list[str]:
    """Streams that a new worker takes from the others, so that it has its share of the cost.

    The cheapest moves that do it: from whoever has most, and never one that would leave the new
    worker with more than the giver keeps.
    """
    loads = dict.fromkeys([*workers, new], 0.0)
    for name, worker in owners.items():
        loads[worker] += costs[name]
    taken: list[str] = []
    while True:
        giver = max(loads, key=lambda w: loads[w])
        gap = loads[giver] - loads[new]
        fitting = [
            name
            for name, worker in owners.items()
            if worker == giver
            and giver != new
            and name not in taken
            and costs[name] <= gap / 2 + 1e-9
        ]
        if not fitting:
            return taken
        name = max(fitting, key=lambda n: costs[n])
        taken.append(name)
        loads[giver] -= costs[name]
        loads[new] += costs[name]
