"""Makes a case that fails as small as it gets, so that someone can read it."""

import dataclasses
from collections.abc import Callable, Iterator

from tests.random_networks.compare import Case


def shrink(case: Case, fails: Callable[[Case], bool], tries: int = 60) -> Case:
    """The smallest case found that still fails, trying so many."""
    left = tries
    found = True
    while found:
        found = False
        for smaller in _smaller(case):
            if left == 0:
                return case
            left -= 1
            if fails(smaller):
                case, found = smaller, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    network = case.network
    for index in reversed(range(len(network.ops))):
        if len(network.ops) > 1:
            yield dataclasses.replace(case, network=network.without(index))
    for output in network.outputs:
        if len(network.outputs) > 1:
            yield dataclasses.replace(case, network=dataclasses.replace(network, outputs=(output,)))
    if case.streams > 1:
        yield dataclasses.replace(case, streams=1)
    if case.frames > 3:
        yield dataclasses.replace(case, frames=case.frames // 2)
    if case.winograd:
        yield dataclasses.replace(case, winograd=False)
    if case.broken:
        yield dataclasses.replace(case, broken=False)
    for index in range(len(case.skipping.rules)):
        rules = case.skipping.rules[:index] + case.skipping.rules[index + 1 :]
        yield dataclasses.replace(case, skipping=dataclasses.replace(case.skipping, rules=rules))
