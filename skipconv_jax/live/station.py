"""A service inside a worker: cameras come and go, its answers wait until they are fetched."""

import collections
import dataclasses
import threading
from collections.abc import Callable, Sequence

from skipconv_jax.live.camera import Camera
from skipconv_jax.live.config import CameraPart
from skipconv_jax.live.engine import Engine
from skipconv_jax.live.outlets import OutletStatus
from skipconv_jax.live.service import Figures, Seen, Service, Watch

MOST = 1000  # answers fetched at once


@dataclasses.dataclass(frozen=True)
class Taken:
    """Answers that were fetched.

    Attributes:
      lines: camera and JSON line, in order.
      last: number of the last one, which the next fetch confirms.
      lost: that waited too long, so far.
    """

    lines: list[tuple[str, bytes]]
    last: int
    lost: int


class Waiting:
    """Answers of a worker until the driver has them: an outlet without a writer."""

    def __init__(self, queue: int) -> None:
        self._lines: collections.deque[tuple[int, str, bytes]] = collections.deque()
        self._most, self._number, self._lost = queue, 0, 0
        self._changed = threading.Condition()

    def put(self, camera: str, line: bytes) -> None:
        """See `outlets.Outlet`."""
        with self._changed:
            if len(self._lines) >= self._most:
                self._lines.popleft()
                self._lost += 1
            self._number += 1
            self._lines.append((self._number, camera, line))
            self._changed.notify()

    def take(self, have: int, seconds: float) -> Taken:
        """Those after number `have`, which are let go; waits for the first of them."""
        with self._changed:
            while self._lines and self._lines[0][0] <= have:
                self._lines.popleft()
            self._changed.wait_for(lambda: bool(self._lines), seconds)
            some = [self._lines[n] for n in range(min(len(self._lines), MOST))]
            last = some[-1][0] if some else have
            return Taken([(camera, line) for _, camera, line in some], last, self._lost)

    def status(self) -> OutletStatus:
        """See `outlets.Outlet`."""
        with self._changed:
            return OutletStatus("driver", self._number, self._lost, len(self._lines), "")

    def close(self, seconds: float = 5.0) -> None:
        """Nothing to close."""


def stream(part: CameraPart) -> tuple[Camera, Watch]:
    """A camera of the file, and what is wanted of it."""
    camera = Camera(part.name, part.address, part.connection(), part.inbox(), rate=part.rate)
    watch = Watch(part.priority, part.ignore, part.zones, part.reset_every, part.cuts)
    return camera, watch


class Station:
    """See the module; lives in a worker.

    Args:
      make_engine: makes the network.
      workers: threads, a stream each.
      whole_frames: as for `Service`; this worker's share.
      queue: answers that wait for the driver.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        workers: int,
        whole_frames: float = 0.0,
        queue: int = 10_000,
    ) -> None:
        self._waiting = Waiting(queue)
        self._service = Service(make_engine(), [], [self._waiting], workers, whole_frames)
        self._service.start()

    def ready(self) -> bool:
        """Once the network is compiled."""
        return True

    def add(self, parts: Sequence[CameraPart]) -> None:
        """Takes cameras on; their first frames are reference frames."""
        for part in parts:
            self._service.add(*stream(part))

    def drop(self, name: str) -> None:
        """Lets a camera and its state go."""
        self._service.drop(name)

    def take(self, have: int, seconds: float) -> Taken:
        """Answers, see `Waiting.take`."""
        return self._waiting.take(have, seconds)

    def figures(self) -> dict[str, Figures]:
        """Of its cameras."""
        return self._service.figures()

    def seen(self, name: str) -> Seen | None:
        """The last answer of a camera, with its frame."""
        return self._service.seen(name)

    def reset(self, name: str) -> None:
        """Its next frame becomes a reference frame."""
        self._service.reset(name)

    def over(self) -> list[str]:
        """Cameras that ended, all of them answered."""
        return self._service.over()
