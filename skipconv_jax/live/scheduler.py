"""Whose frame is next: fair between streams, most changed first where there are too many.

Start-time fair queueing: a stream's turn costs it 1 / weight of virtual time, the stream with the
least virtual time is next, and one that had nothing to do saves nothing up. So each of the streams
that always have a frame waiting gets weight / sum(weights) of the turns.
"""

import dataclasses
from collections.abc import Mapping, Sequence

# What a still picture counts for, as a share of the most changed one: none starves.
FLOOR = 0.1


@dataclasses.dataclass(frozen=True)
class Offer:
    """A frame that waits.

    Attributes:
      name: of its stream.
      change: share of the picture that changed since the stream's last turn; None where unknown.
      full: it will be computed whole: the first of a stream, after a cut or a reset.
    """

    name: str
    change: float | None = None
    full: bool = False


class Budget:
    """At most `rate` whole frames a second, over all streams; 0 sets no bound.

    Streams that switch all at once (night falls, a switch comes back) take their turns: the last of
    n waits n / rate seconds, while those that did not switch go on.
    """

    def __init__(self, rate: float, burst: float = 1.0) -> None:
        if rate < 0:
            raise ValueError(f"`rate` (={rate}) must be positive, or 0 for no bound.")
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, 0.0

    def wait(self, now: float) -> float:
        """Seconds until a whole frame may run."""
        if not self._rate:
            return 0.0
        self._tokens = min(self._tokens + (now - self._at) * self._rate, self._burst)
        self._at = now
        # A little less than one is one: sums of small times are not exact.
        return max(1 - 1e-9 - self._tokens, 0.0) / self._rate

    def spend(self) -> None:
        """One whole frame runs."""
        self._tokens -= 1


class Scheduler:
    """Picks among offers; one thread at a time, times are the caller's.

    Args:
      priorities: of every stream, more is more often where there is too much to do.
      workers: streams that run at once; more offers than that is an overload.
      budget: of whole frames.
    """

    def __init__(
        self, priorities: Mapping[str, float], workers: int = 1, budget: Budget | None = None
    ) -> None:
        wrong = {name: value for name, value in priorities.items() if not value > 0}
        if wrong:
            raise ValueError(f"`priorities` (={wrong}) must be above 0.")
        self._priorities, self._workers = dict(priorities), workers
        self._budget = budget or Budget(0)
        self._times = dict.fromkeys(priorities, 0.0)
        self._clock = 0.0

    def add(self, name: str, priority: float) -> None:
        """A stream that begins now; it catches up with nothing."""
        if not priority > 0:
            raise ValueError(f"`priority` (={priority}, of {name!r}) must be above 0.")
        self._priorities[name], self._times[name] = priority, self._clock

    def drop(self, name: str) -> None:
        """A stream that is no more."""
        del self._priorities[name], self._times[name]

    def pick(self, offers: Sequence[Offer], now: float) -> Offer | None:
        """The next to run, or None where all wait for the budget."""
        may_full = not self._budget.wait(now)
        allowed = [offer for offer in offers if may_full or not offer.full]
        if not allowed:
            return None
        # Streams of equal time take turns in the order they were named in: `min` is stable.
        chosen = min(allowed, key=lambda offer: max(self._times[offer.name], self._clock))
        self._clock = max(self._times[chosen.name], self._clock)
        self._times[chosen.name] = self._clock + 1 / self._weight(chosen, offers)
        if chosen.full:
            self._budget.spend()
        return chosen

    def _weight(self, chosen: Offer, offers: Sequence[Offer]) -> float:
        priority = self._priorities[chosen.name]
        if len(offers) <= self._workers or chosen.change is None:
            return priority
        most = max(offer.change or 0.0 for offer in offers)
        return priority * max(chosen.change / most if most else 1.0, FLOOR)

    def wait(self, now: float) -> float:
        """Seconds until what waits for the budget may run."""
        return self._budget.wait(now)
