"""A bounded queue of one camera's frames: which of them is dropped is a stated policy."""

import collections
import dataclasses
import threading
from typing import Generic, Protocol, TypeVar

POLICIES = ("newest", "oldest", "wait")


class Eventful(Protocol):
    """What is queued: it may carry an event that must not be lost with it."""

    @property
    def event(self) -> str: ...


T = TypeVar("T", bound=Eventful)


class Inbox(Generic[T]):
    """Frames between a reader thread and whoever takes them; never more than `size`.

    Where it is full, `newest` drops the frame that waited longest, `oldest` the one that arrives,
    and `wait` makes the reader wait (for files and pipes, whose writer can). Every drop is counted,
    and the event of a dropped frame goes to the next one that is taken.
    """

    def __init__(self, size: int = 1, policy: str = "newest") -> None:
        if size < 1:
            raise ValueError(f"`size` (={size}) must be at least 1 frame.")
        if policy not in POLICIES:
            raise ValueError(f"`policy` (={policy!r}) must be one of {', '.join(POLICIES)}.")
        self.dropped = 0
        self._size, self._policy = size, policy
        self._frames: collections.deque[T] = collections.deque()
        self._lost = ""  # events of dropped frames that the next one to be queued will say
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: T) -> None:
        """Queues a frame; does nothing once closed."""
        with self._changed:
            if self._policy == "wait":
                self._changed.wait_for(lambda: self._closed or len(self._frames) < self._size)
            if self._closed:
                return
            full = len(self._frames) >= self._size
            self.dropped += full
            if full and self._policy == "oldest":
                self._lost = joined(self._lost, frame.event)
                return
            self._lost, before = "", self._lost
            gone = self._frames.popleft().event if full else ""
            self._frames.append(_after(before, frame))
            self._frames[0] = _after(gone, self._frames[0])

    def take(self) -> T | None:
        """The frame that waited longest, with the events of those dropped; None for none."""
        with self._changed:
            if not self._frames:
                return None
            self._changed.notify()
            return self._frames.popleft()

    def first(self) -> T | None:
        """The frame that `take` would give, left where it is."""
        with self._changed:
            return self._frames[0] if self._frames else None

    def close(self) -> None:
        """Lets a waiting reader go; what is queued is gone."""
        with self._changed:
            self._closed = True
            self._frames.clear()
            self._changed.notify_all()


def joined(first: str, second: str) -> str:
    """Both events, each reason once, the last eight: bounded, however long nobody takes a frame."""
    parts = dict.fromkeys(part for part in f"{first}; {second}".split("; ") if part)
    return "; ".join([*parts][-8:])


def _after(event: str, frame: T) -> T:
    """The frame with what happened before it."""
    if not event:
        return frame
    made: T = dataclasses.replace(frame, event=joined(event, frame.event))  # type: ignore[type-var]
    return made
