"""The service: cameras in, one engine, answers out. All threads of it begin and end here.

service = Service(engine, [(Camera(...), Watch(...)), ...], outlets)
service.start(); service.wait(); service.stop()
"""

import collections
import dataclasses
import datetime
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from skipconv_jax.live.camera import Camera, Status
from skipconv_jax.live.capture import CaptureError, Shot
from skipconv_jax.live.changes import Changes, prepare
from skipconv_jax.live.engine import Answer, Engine, boxes
from skipconv_jax.live.inbox import joined
from skipconv_jax.live.outlets import Sink
from skipconv_jax.live.regions import Ignore, Polygon, Zones
from skipconv_jax.live.scheduler import Budget, Offer, Scheduler

_log = logging.getLogger("skipconv_jax.live")
WINDOW = 512  # answers that latencies and the shown cost look back on
QUANTILES = (0.5, 0.95, 0.99)


def quantiles(latency: Collection[float]) -> tuple[float, ...]:
    """Latencies at `QUANTILES`; NaN where there was no answer yet."""
    if not latency:
        return (math.nan,) * len(QUANTILES)
    return tuple(float(q) for q in np.quantile(list(latency), QUANTILES))


@dataclasses.dataclass(frozen=True)
class Watch:
    """What is wanted of a camera's frames; see `config.CameraPart`."""

    priority: float = 1.0
    ignore: Sequence[Polygon] = ()
    zones: Mapping[str, Polygon] = dataclasses.field(default_factory=dict)
    reset_every: int = 0
    cuts: bool = True


@dataclasses.dataclass(frozen=True)
class Seen:
    """An answer as it went out.

    Attributes:
      row: its line.
      image: the frame.
      fired: see `engine.Answer`.
    """

    row: dict[str, Any]
    image: np.ndarray
    fired: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Figures:
    """A stream so far.

    Attributes:
      camera: how its source is.
      answered: frames with an answer.
      failed: frames that the network or their decoding failed on.
      resets: answers to reference frames.
      macs: shares of the dense network's multiply-accumulates, added up over all answers.
      seconds: of computing, over all answers.
      latency: seconds from a frame's arrival to its answer, at `QUANTILES` of the last 512.
      costs: shares of the last answers, oldest first.
      state_bytes: that it holds.
    """

    camera: Status
    answered: int
    failed: int
    resets: int
    macs: float
    seconds: float
    latency: tuple[float, ...]
    costs: tuple[float, ...]
    state_bytes: int


class _Stream:
    """A camera with all that is remembered of it; its fields are guarded by the service's lock."""

    def __init__(self, camera: Camera, watch: Watch) -> None:
        self.camera, self.watch = camera, watch
        self.ignore, self.zones = Ignore(watch.ignore), Zones(watch.zones)
        self.changes = Changes()
        self.busy = False
        self.reset = ""  # why its next frame is a reference frame
        self.since = 0  # frames since the last one
        # At which shot, its change, and whether there was a cut since the last one that ran.
        self.looked: tuple[int, float | None, bool] | None = None
        self.answered = self.failed = self.resets = 0
        self.macs = self.seconds = 0.0
        self.latency: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self.costs: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self.seen: Seen | None = None

    def _due(self) -> bool:
        """Whether the period between reference frames is over."""
        return 0 < self.watch.reset_every <= self.since

    def offer(self) -> Offer | None:
        """The frame that waits, None if there is none or the stream is busy."""
        shot = None if self.busy else self.camera.inbox.first()
        if shot is None:
            return None
        if self.looked is None or self.looked[0] != shot.number:
            # A cut stays one until its frame had a turn: where many wait for theirs, nobody looks
            # at every frame of every stream again.
            was = self.looked is not None and self.looked[2]
            change, cut = self.changes.look(shot.thumbnail, self.watch.cuts and not was)
            self.looked = shot.number, change, cut or was
        _, change, cut = self.looked
        full = bool(cut or shot.event or self.reset or self._due() or not self.answered)
        return Offer(self.camera.name, change, full)

    def take(self) -> tuple[Shot, str] | None:
        """Takes the frame; with it, why it is a reference frame, '' if it is none."""
        shot = self.camera.inbox.take()
        if shot is None:
            return None
        cut = self.looked is not None and self.looked[2]
        why = joined(joined(self.reset, shot.event), "cut" if cut else "")
        self.looked, self.reset, self.busy = None, "", True
        return shot, joined(why, "due" if self._due() else "")


class Service:
    """Threads that take frames from cameras, run the engine, and hand answers to outlets.

    Args:
      engine: of the network.
      streams: cameras, not yet started, and what is wanted of them.
      outlets: for lines of JSON.
      workers: frames computed at once.
      whole_frames: a second, see `scheduler.Budget`.
    """

    def __init__(
        self,
        engine: Engine,
        streams: Sequence[tuple[Camera, Watch]],
        outlets: Sequence[Sink] = (),
        workers: int = 1,
        whole_frames: float = 0.0,
    ) -> None:
        self._engine, self.outlets = engine, tuple(outlets)
        self._streams: dict[str, _Stream] = {}
        self._scheduler = Scheduler({}, workers, Budget(whole_frames))
        self._lock = threading.Lock()
        self._work_there = threading.Condition(self._lock)  # workers wait for it
        self._over = threading.Condition(self._lock)  # `wait` waits for it
        self._stopping = False
        self._listeners: list[Callable[[Seen], None]] = []
        for camera, watch in streams:
            self._take_on(camera, watch)
        self._workers = [
            threading.Thread(target=self._work, name=f"worker {n}", daemon=True)
            for n in range(workers)
        ]

    @property
    def names(self) -> list[str]:
        """Of the cameras, in order."""
        return list(self._streams)

    def _woken(self, stream: _Stream) -> None:
        """A camera has a frame, or another state: one worker is enough for it."""
        with self._lock:
            self._work_there.notify()
            if stream.camera.over:
                self._over.notify_all()

    def listen(self, listener: Callable[[Seen], None]) -> None:
        """Calls it with every answer, on the worker's thread: it must not wait."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begins."""
        prepare()
        for worker in self._workers:
            worker.start()
        for stream in self._streams.values():
            stream.camera.start()

    def add(self, camera: Camera, watch: Watch) -> None:
        """Takes a camera on while the service runs, and starts it.

        Raises:
          ValueError: it has one of that name.
        """
        with self._lock:
            if camera.name in self._streams:
                raise ValueError(f"`camera` (={camera.name!r}) must have a name of its own.")
            self._take_on(camera, watch)
        camera.start()

    def _take_on(self, camera: Camera, watch: Watch) -> None:
        stream = _Stream(camera, watch)
        self._streams[camera.name] = stream
        self._scheduler.add(camera.name, watch.priority)
        camera.on_wake(functools.partial(self._woken, stream))

    def drop(self, name: str) -> None:
        """Lets a camera and its state go; a frame of it that is under way is answered first.

        Raises:
          KeyError: no such camera.
        """
        stream = self._streams[name]
        if not stream.camera.stop():
            _log.warning("camera %s: its thread hangs and is left", name)
        with self._over:
            self._over.wait_for(lambda: not stream.busy, 10)
            del self._streams[name]
            self._scheduler.drop(name)
        self._engine.forget(name)

    def over(self) -> list[str]:
        """Cameras that ended, all their frames answered."""
        with self._lock:
            return [n for n, s in self._streams.items() if s.camera.over and not s.busy]

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until every camera is over and answered, as files are; False if time was short."""
        with self._over:
            return self._over.wait_for(
                lambda: (
                    self._stopping
                    or all(s.camera.over and not s.busy for s in self._streams.values())
                ),
                seconds,
            )

    def stop(self) -> None:
        """Ends all threads; answers that wait are written."""
        with self._lock:
            self._stopping = True
            self._work_there.notify_all()
            self._over.notify_all()
        for stream in self._streams.values():
            if not stream.camera.stop():
                _log.warning("camera %s: its thread hangs and is left", stream.camera.name)
        for worker in self._workers:
            worker.join(30)
        for outlet in self.outlets:
            outlet.close()

    def reset(self, name: str, why: str = "asked for") -> None:
        """The stream's next frame becomes a reference frame.

        Raises:
          KeyError: no such camera.
        """
        with self._lock:
            self._streams[name].reset = why

    def seen(self, name: str) -> Seen | None:
        """The last answer of a camera.

        Raises:
          KeyError: no such camera.
        """
        return self._streams[name].seen

    def figures(self) -> dict[str, Figures]:
        """All streams so far."""
        with self._lock:
            return {name: self._figures(stream) for name, stream in self._streams.items()}

    def _figures(self, stream: _Stream) -> Figures:
        return Figures(
            stream.camera.status(),
            stream.answered,
            stream.failed,
            stream.resets,
            stream.macs,
            stream.seconds,
            quantiles(stream.latency),
            tuple(stream.costs),
            self._engine.state_bytes(stream.camera.name),
        )

    def _work(self) -> None:
        while True:
            with self._work_there:
                taken = self._next()
                while taken is None:
                    if self._stopping:
                        return
                    # Where frames wait for the budget, time alone lets them go on.
                    waits = self._scheduler.wait(time.monotonic())
                    self._work_there.wait(min(waits, 0.5) if waits else 0.5)
                    taken = self._next()
            stream, shot, why = taken
            self._answer(stream, shot, why)

    def _next(self) -> tuple[_Stream, Shot, str] | None:
        if self._stopping:
            return None
        offers = [offer for s in self._streams.values() if (offer := s.offer()) is not None]
        chosen = self._scheduler.pick(offers, time.monotonic()) if offers else None
        if chosen is None:
            return None
        if len(offers) > 1:  # another worker may be idle
            self._work_there.notify()
        stream = self._streams[chosen.name]
        taken = stream.take()
        return None if taken is None else (stream, *taken)

    def _answer(self, stream: _Stream, shot: Shot, why: str) -> None:
        name, began = stream.camera.name, time.monotonic()
        fresh = bool(why) or not stream.answered
        try:
            image = shot.pixels()
            answer = self._engine.run(name, image, fresh, stream.ignore)
            row = self._row(stream, shot, answer, image, why, began)
        except CaptureError as error:
            self._failed(stream, shot, str(error), why)
            return
        except Exception as error:  # one stream's trouble is not the others'
            _log.exception("camera %s: frame %d failed", name, shot.number)
            self._engine.forget(name)
            self._failed(stream, shot, type(error).__name__, why)
            return
        seen = Seen(row, image, answer.fired)
        self._publish(seen)
        with self._lock:
            stream.answered += 1
            stream.since = 1 if fresh else stream.since + 1
            stream.resets += fresh
            stream.macs += answer.share
            stream.seconds += answer.ms / 1e3
            stream.latency.append(time.monotonic() - shot.arrived)
            stream.costs.append(answer.share)
            stream.changes.ran(shot.thumbnail)
            stream.seen = seen
            self._free(stream)

    def _row(
        self, stream: _Stream, shot: Shot, answer: Answer, image: np.ndarray, why: str, began: float
    ) -> dict[str, Any]:
        row: dict[str, Any] = {
            "camera": stream.camera.name,
            "frame": shot.number,
            "time": datetime.datetime.fromtimestamp(shot.time, datetime.UTC).isoformat(
                timespec="milliseconds"
            ),
            "pts": shot.pts,
            "size": [image.shape[1], image.shape[0]],
            "waited_ms": round((began - shot.arrived) * 1e3, 2),
            "ms": round(answer.ms, 2),
            "gmac": answer.gmac,
            "share": round(answer.share, 6),
            **({"reset": why} if why else {}),
            **answer.row,
        }
        if stream.watch.zones and "boxes" in answer.row:
            row["zones"] = stream.zones.of(boxes(answer.row), image.shape)
        row["latency_ms"] = round((time.monotonic() - shot.arrived) * 1e3, 2)
        return row

    def _failed(self, stream: _Stream, shot: Shot, reason: str, why: str) -> None:
        row = {"camera": stream.camera.name, "frame": shot.number, "error": reason}
        self._write(row)
        with self._lock:
            stream.failed += 1
            # What was to be a reference frame is one still; so is what follows a failure.
            stream.reset = joined(why, "after a failed frame")
            self._free(stream)

    def _free(self, stream: _Stream) -> None:
        """It may have its next turn; this worker goes on with whatever is next."""
        stream.busy = False
        if stream.camera.over:  # it ended, or `drop` stopped it
            self._over.notify_all()

    def _publish(self, seen: Seen) -> None:
        self._write(seen.row)
        for listener in self._listeners:
            listener(seen)

    def _write(self, row: dict[str, Any]) -> None:
        line = msgspec.json.encode(row) + b"\n"
        for outlet in self.outlets:
            outlet.put(str(row["camera"]), line)
