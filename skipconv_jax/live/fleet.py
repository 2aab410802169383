"""Cameras over several workers, as one service: a worker that dies has its streams elsewhere.

fleet = Fleet(parts, lambda: Local(Station, make_engine, 1), workers=2, outlets)
fleet.start(); fleet.wait(); fleet.stop()

A row goes out once: it is taken from the worker that owns its camera, in order, and confirmed; what
a worker had not handed over when it died is lost (the frames in flight). Frames are numbered on
over all the workers a camera has had.
"""

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from skipconv_jax.live.address import shown
from skipconv_jax.live.camera import Status
from skipconv_jax.live.config import CameraPart
from skipconv_jax.live.outlets import Sink
from skipconv_jax.live.placing import moved, placed
from skipconv_jax.live.service import WINDOW, Figures, Seen, quantiles
from skipconv_jax.live.station import MOST, Taken
from skipconv_jax.live.workers import CallFailed, Worker, WorkerDied

_log = logging.getLogger("skipconv_jax.live")
_POLL = 0.2  # seconds that a fetch waits for answers
_PATIENCE = 15.0  # seconds after which a worker that says nothing is taken for dead
_AGAIN = 1.0  # seconds before a worker is started in the place of one that died
_ASKED = 1.0  # seconds between two questions for figures
_LEAST = 1e-3  # share of a worker's time that a stream counts at least
_COUNTED = ("frames", "thinned", "dropped", "damaged", "reconnects", "stalls")


class _Member:
    """A worker's place: the thread that talks to it, the cameras it has, orders that wait."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.worker: Worker | None = None
        self.orders: collections.deque[tuple[str, tuple[Any, ...]]] = collections.deque()
        self.have = 0


class _Stream:
    """What is known of a camera, whoever has it; guarded by the fleet's lock."""

    def __init__(self, part: CameraPart) -> None:
        self.part = part
        self.owner: _Member | None = None
        self.first = 0  # number of the present worker's first frame
        self.next = 0
        self.here = 0  # rows of the present worker
        self.why = ""  # what the next answer says beside its own reason
        self.answered = self.failed = self.resets = 0
        self.macs = self.seconds = 0.0
        self.latency: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self.costs: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self.before = dict.fromkeys(_COUNTED, 0)  # counted by workers that are gone
        self.told: Figures | None = None
        self.began = time.monotonic()
        self.over = False

    def leave(self, why: str) -> None:
        """Its worker is gone, or gives it up."""
        if self.told is not None:
            for key in _COUNTED:
                self.before[key] += getattr(self.told.camera, key)
        self.owner, self.told, self.first, self.here, self.why = None, None, self.next, 0, why

    def accept(self, row: dict[str, Any]) -> None:
        """Counts an answer, and says of it what only the fleet knows."""
        row["frame"] += self.first
        self.next = row["frame"] + 1
        self.here += 1
        if "error" in row:
            self.failed += 1
            return
        if self.why:
            row["reset"] = f"{self.why}; {row['reset']}" if "reset" in row else self.why
            self.why = ""
        self.answered += 1
        self.resets += "reset" in row
        self.macs += row["share"]
        self.seconds += row["ms"] / 1e3
        self.latency.append(row["latency_ms"] / 1e3)
        self.costs.append(row["share"])

    def cost(self) -> float:
        """Share of a worker's time it took so far.

        No stream costs less than those not yet measured count: a frame has to be read too, and of
        streams that cost nothing a new worker would take all.
        """
        return max(_LEAST, self.seconds / max(time.monotonic() - self.began, 1.0))


class Fleet:
    """Has the face of a `Service`.

    Args:
      parts: cameras.
      make_worker: starts a worker whose object is a `Station`.
      workers: how many; each is replaced when it dies.
      outlets: for lines of JSON.
    """

    def __init__(
        self,
        parts: Sequence[CameraPart],
        make_worker: Callable[[], Worker],
        workers: int,
        outlets: Sequence[Sink] = (),
    ) -> None:
        self.outlets = tuple(outlets)
        self._make = make_worker
        self._streams = {part.name: _Stream(part) for part in parts}
        self._members = [_Member(number) for number in range(workers)]
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopping = False
        self._listeners: list[Callable[[Seen], None]] = []
        self.died = 0
        self._threads = [
            threading.Thread(target=self._drive, args=(m,), name=f"member {m.number}", daemon=True)
            for m in self._members
        ]

    @property
    def names(self) -> list[str]:
        """Of the cameras, in order."""
        return list(self._streams)

    def listen(self, listener: Callable[[Seen], None]) -> None:
        """Calls it with every answer; without its frame, which stays with the worker."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begins."""
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until every camera is over and answered; False if time was short."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._stopping or all(s.over for s in self._streams.values()), seconds
            )

    def stop(self) -> None:
        """Ends the workers; answers that were fetched are written."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(10)
        for outlet in self.outlets:
            outlet.close()

    def reset(self, name: str, why: str = "asked for") -> None:
        """The stream's next frame becomes a reference frame.

        Raises:
          KeyError: no such camera.
        """
        with self._lock:
            stream = self._streams[name]
            if stream.owner is not None:
                stream.owner.orders.append(("reset", (name,)))

    def seen(self, name: str) -> Seen | None:
        """The last answer of a camera, from who has it; None while nobody has.

        Raises:
          KeyError: no such camera.
        """
        with self._lock:
            stream = self._streams[name]
            worker = stream.owner.worker if stream.owner else None
        if worker is None:
            return None
        try:
            found: Seen | None = worker.call("seen", name, seconds=_PATIENCE)
        except (WorkerDied, CallFailed):
            return None  # it is being moved; its member's thread sees to that
        if found is not None:
            found.row["frame"] += stream.first
        return found

    def figures(self) -> dict[str, Figures]:
        """All streams so far, over all workers they had."""
        with self._lock:
            return {name: self._figures(stream) for name, stream in self._streams.items()}

    def _figures(self, stream: _Stream) -> Figures:
        told, before = stream.told, stream.before
        camera = _nowhere(stream.part) if told is None else told.camera
        counts = {key: getattr(camera, key) + before[key] for key in _COUNTED}
        return Figures(
            dataclasses.replace(camera, **counts),
            stream.answered,
            stream.failed,
            stream.resets,
            stream.macs,
            stream.seconds,
            quantiles(stream.latency),
            tuple(stream.costs),
            0 if told is None else told.state_bytes,
        )

    def _drive(self, member: _Member) -> None:
        """A member's thread: a worker as long as it lives, then another one."""
        while not self._stopping:
            try:
                worker = self._make()
                try:
                    worker.call("ready", seconds=None)
                    self._join(member, worker)
                    self._talk(member, worker)
                finally:
                    member.worker = None
                    worker.stop()
            except (WorkerDied, CallFailed) as error:
                _log.warning("worker %d: %s; its streams go elsewhere", member.number, error)
                self._bury(member)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, _AGAIN)

    def _join(self, member: _Member, worker: Worker) -> None:
        """A new worker gets the streams that have none, and its share of the others'."""
        with self._lock:
            member.worker, member.have = worker, 0
            free = {n: s.cost() for n, s in self._streams.items() if not s.owner and not s.over}
            self._place(free)
            owned = {n: s.owner for n, s in self._streams.items() if s.owner and not s.over}
            costs = {name: self._streams[name].cost() for name in owned}
            numbers = {name: owner.number for name, owner in owned.items() if owner}
            for name in moved(costs, numbers, member.number, set(numbers.values())):
                owner = owned[name]
                if owner is not None and owner is not member:
                    owner.orders.append(("give", (name, member)))

    def _place(self, costs: Mapping[str, float]) -> None:
        """Streams without a worker to those that run, by cost; the lock is held."""
        running = [m for m in self._members if m.worker is not None]
        if not running:
            return
        loads = {
            m.number: sum(s.cost() for s in self._streams.values() if s.owner is m) for m in running
        }
        for name, number in placed(costs, loads).items():
            self._own(self._members[number], name)

    def _own(self, member: _Member, name: str) -> None:
        stream = self._streams[name]
        stream.owner = member
        member.orders.append(("add", ([stream.part],)))

    def _bury(self, member: _Member) -> None:
        """Its streams go to those that run, each with a reference frame."""
        with self._lock:
            self.died += 1
            member.worker = None
            member.orders.clear()
            free = {}
            for name, stream in self._streams.items():
                if stream.owner is member:
                    free[name] = stream.cost()
                    stream.leave("its worker died")
            self._place(free)

    def _talk(self, member: _Member, worker: Worker) -> None:
        asked = 0.0
        while not self._stopping:
            self._obey(member, worker)
            taken = worker.call("take", member.have, _POLL, seconds=_PATIENCE)
            self._accept(member, taken)
            if time.monotonic() - asked > _ASKED:
                asked = time.monotonic()
                self._ask(member, worker)

    def _obey(self, member: _Member, worker: Worker) -> None:
        """Orders that wait."""
        while True:
            with self._lock:
                if not member.orders:
                    return
                order, args = member.orders.popleft()
            if order != "give":
                worker.call(order, *args, seconds=_PATIENCE)
                continue
            name, heir = args
            worker.call("drop", name, seconds=_PATIENCE)
            # What it still has of the camera comes before what the next one will have. Until all
            # that waited was fetched, not until nothing waits: its other cameras go on answering.
            fetched = MOST
            while fetched == MOST:
                taken = worker.call("take", member.have, 0.0, seconds=_PATIENCE)
                self._accept(member, taken)
                fetched = len(taken.lines)
            with self._lock:
                self._streams[name].leave("moved to another worker")
                if heir.worker is not None:
                    self._own(heir, name)
                else:
                    self._place({name: self._streams[name].cost()})

    def _accept(self, member: _Member, taken: Taken) -> None:
        """Rows of cameras that this member owns go out."""
        for name, line in taken.lines:
            row = msgspec.json.decode(line)
            with self._lock:
                stream = self._streams[name]
                if stream.owner is not member:
                    continue  # of a camera that it gave away
                stream.accept(row)
            out = msgspec.json.encode(row) + b"\n"
            for outlet in self.outlets:
                outlet.put(name, out)
            for listener in self._listeners:
                listener(Seen(row, np.zeros((0, 0, 3), np.uint8), None))
        member.have = taken.last

    def _ask(self, member: _Member, worker: Worker) -> None:
        told = worker.call("figures", seconds=_PATIENCE)
        over = worker.call("over", seconds=_PATIENCE)
        with self._changed:
            for name, figures in told.items():
                stream = self._streams[name]
                if stream.owner is member:
                    stream.told = figures
                    # Over is what was answered to the last frame, and fetched.
                    fetched = stream.here >= figures.answered + figures.failed
                    stream.over = name in over and fetched
            self._changed.notify_all()


def _nowhere(part: CameraPart) -> Status:
    """A camera that no worker has at the moment."""
    return Status(
        part.name, shown(part.address), "waiting", "no worker has it yet",
        0, 0, 0, 0, 0, 0, None, None, 0.0,
    )  # fmt: skip
