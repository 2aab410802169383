"""A camera: a thread that reads it, connects again when it must, and a status that is never stale.

camera = Camera("door", "rtsp://camera/stream", wake=condition_set)
camera.start()
shot = camera.inbox.take()
"""

import dataclasses
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from skipconv_jax.live.address import Kind, kind, shown
from skipconv_jax.live.capture import CaptureError, Connection, Counts, Shot, Stalled, capture
from skipconv_jax.live.inbox import Inbox, joined

_log = logging.getLogger("skipconv_jax.live")
_EARLY = 0.1  # of the time between two frames
Open = Callable[[str, Connection, Counts, threading.Event], Iterator[Shot]]


@dataclasses.dataclass(frozen=True)
class Retry:
    """When a lost connection is tried again: `first 2^k` seconds after the k-th failure in a row.

    A connection that lasted longer than the delay before it starts from the first again.

    Attributes:
      first: seconds.
      most: seconds.
      jitter: share of a delay that is random, so that cameras of one switch don't come at once.
    """

    first: float = 0.5
    most: float = 30.0
    jitter: float = 0.2

    def delay(self, failures: int, chance: float) -> float:
        """Seconds before the next try; `chance` in [0, 1)."""
        plain = min(self.first * 2.0 ** min(failures, 60), self.most)
        return plain * (1 - self.jitter * chance)


@dataclasses.dataclass(frozen=True)
class Status:
    """How a camera is.

    Attributes:
      name: of the camera.
      address: scheme and host alone.
      state: 'connecting', 'live', 'stalled', 'waiting' to connect again, 'ended' or 'stopped'.
      reason: of the last failure, '' for none.
      frames: read and whole.
      thinned: of those, left out because they came faster than the camera's `rate`.
      dropped: of those, wanted and never taken.
      damaged: read and not whole.
      reconnects: connections after the first.
      stalls: connections given up because nothing came.
      size: height and width of the last frame.
      age: seconds since the last frame; None before the first.
      fps: over the last seconds.
    """

    name: str
    address: str
    state: str
    reason: str
    frames: int
    thinned: int
    dropped: int
    damaged: int
    reconnects: int
    stalls: int
    size: tuple[int, int] | None
    age: float | None
    fps: float


class Rate:
    """Frames per second over a few seconds, in constant memory."""

    def __init__(self, seconds: float = 5.0) -> None:
        self._seconds, self._began = seconds, 0.0
        # One reference, so that other threads read a level and its time together.
        self._level: tuple[float, float] | None = None

    def tick(self, now: float) -> None:
        """A frame."""
        if self._level is None:
            self._began, self._level = now, (0.0, now)
        self._level = (self._decayed(self._level, now) + 1, now)

    def _decayed(self, level: tuple[float, float], now: float) -> float:
        return level[0] * 2.0 ** (-max(now - level[1], 0.0) / self._seconds)

    def value(self, now: float) -> float:
        """Frames per second."""
        level = self._level
        if level is None:
            return 0.0
        # What one frame per second would have built up since the beginning.
        window = self._seconds / math.log(2)
        full = window * (1 - 2.0 ** (-(now - self._began) / self._seconds))
        return self._decayed(level, now) / full if full > 0.2 else 0.0


class Camera:
    """One source, read by a thread of its own.

    Args:
      name: of the camera, in logs and answers.
      address: see `address.kind`; credentials in it are never shown.
      connection: how it is opened.
      inbox: where its frames wait.
      retry: when it is opened again.
      rate: frames per second to keep at most, evenly; 0 keeps all.
      wake: called after each frame and change of state.
      open_: instead of `capture`.
    """

    def __init__(
        self,
        name: str,
        address: str,
        connection: Connection | None = None,
        inbox: Inbox[Shot] | None = None,
        retry: Retry | None = None,
        rate: float = 0.0,
        wake: Callable[[], Any] = lambda: None,
        open_: Open = capture,
    ) -> None:
        self.name = name
        self.inbox: Inbox[Shot] = Inbox() if inbox is None else inbox
        self._address, self._shown = address, shown(address)
        self._connection, self._retry = connection or Connection(), retry or Retry()
        self._wake, self._open = wake, open_
        self._period, self._due = 1 / rate if rate else 0.0, 0.0
        self._thinned, self._event = 0, ""
        # What ends by itself and has no more: a file that is over, stdin that was closed.
        self._once = kind(address) in (Kind.FRAMES, Kind.STDIN)
        self._counts, self._rate = Counts(), Rate()
        self._state, self._reason, self._said = "connecting", "", ""
        self._connections = self._stalls = 0
        self._last: float | None = None
        self._since = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera {name}", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> bool:
        """Ends the thread; False if it hangs in a call that nothing can end."""
        self._stop.set()
        self.inbox.close()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def on_wake(self, wake: Callable[[], Any]) -> None:
        """Calls `wake` from now on, instead of what was given."""
        self._wake = wake

    @property
    def over(self) -> bool:
        """Whether it ended or was stopped and nothing is left to take."""
        return self._state in ("ended", "stopped") and not len(self.inbox)

    def status(self) -> Status:
        """How it is now, whatever its thread does."""
        now = time.monotonic()
        age = None if self._last is None else now - self._last
        state, reason = self._state, self._reason
        silent = now - max(self._since, self._last or 0.0)
        patience = self._connection.stall_seconds
        if state == "connecting":
            patience += self._connection.open_seconds
        if state in ("live", "connecting") and silent > patience:
            # A thread that hangs can't say so itself, nor one that never sees a whole frame.
            state, reason = "stalled", f"no frame for {silent:.0f} s"
        return Status(
            self.name,
            self._shown,
            state,
            reason,
            self._counts.frames,
            self._thinned,
            self.inbox.dropped,
            self._counts.damaged,
            max(self._connections - 1, 0),
            self._stalls,
            self._counts.size,
            age,
            self._rate.value(now),
        )

    def _enter(self, state: str, reason: str = "", again: float = 0.0) -> None:
        # The same failure again is no news: a camera may be off for months.
        level = logging.WARNING if reason and reason != self._said else logging.INFO
        self._said = "" if state == "live" else reason or self._said
        self._state, self._since = state, time.monotonic()
        if reason:
            self._reason = f"{reason}; again in {again:.1f} s"
        _log.log(level, "camera %s: %s%s", self.name, state, reason and f" ({self._reason})")
        self._wake()

    def _run(self) -> None:
        failures, chances = 0, random.Random(self.name)
        while not self._stop.is_set():
            self._enter("connecting")
            began, delay = time.monotonic(), self._retry.delay(failures, chances.random())
            reason = self._read()
            if self._stop.is_set():
                break
            if self._once and not reason:
                self._enter("ended")
                return
            lasted = self._last is not None and self._last - began > delay
            failures = 0 if lasted else failures
            delay = self._retry.delay(failures, chances.random())
            failures += 1
            self._enter("waiting", reason or "the source ended", delay)
            self._stop.wait(delay)
        self._enter("stopped")

    def _read(self) -> str:
        """One connection; why it ended, '' where the source was over."""
        first = True
        try:
            for shot in self._open(self._address, self._connection, self._counts, self._stop):
                if first:
                    self._connections += 1
                    self._enter("live")
                    event = "reconnected" if self._connections > 1 else "connected"
                    event = "; ".join(filter(None, (event, shot.event)))
                    shot = dataclasses.replace(shot, event=event)
                    first = False
                self._last = time.monotonic()
                self._rate.tick(self._last)
                self._keep(shot)
                if self._stop.is_set():
                    return ""
        except Stalled as error:
            self._stalls += 1
            return str(error)
        except CaptureError as error:
            return str(error)
        except Exception as error:  # a source of the user's: the camera fails, the others go on
            # A trace may hold the address: none of one that has secrets.
            trace = self._address == self._shown
            _log.error("camera %s: %s", self.name, type(error).__name__, exc_info=trace)
            return type(error).__name__
        return ""

    def _keep(self, shot: Shot) -> None:
        """Queues a frame, or leaves it out where they come too fast; its event stays."""
        event, self._event = joined(self._event, shot.event), ""
        # A little early is in time: frames come at their rate but for some jitter.
        if shot.arrived < self._due - _EARLY * self._period:
            self._thinned += 1
            self._event = event
            return
        late = shot.arrived >= self._due + self._period
        self._due = (shot.arrived if late else self._due) + self._period
        self.inbox.put(dataclasses.replace(shot, event=event))
        self._wake()
