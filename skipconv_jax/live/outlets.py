"""Where answers go: each outlet has a bounded queue and a thread, so none holds up the rest."""

import collections
import dataclasses
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any, Protocol

_log = logging.getLogger("skipconv_jax.live")


class Writer(Protocol):
    """What an outlet writes to."""

    def write(self, camera: str, line: bytes) -> None:
        """One answer, whole or not at all.

        Raises:
          OSError: not now; it will be tried again.
        """
        ...

    def close(self) -> None:
        """No more answers."""
        ...


@dataclasses.dataclass(frozen=True)
class OutletStatus:
    """How an outlet is: answers written, lost and waiting, and why it can't write, '' if it can."""

    name: str
    written: int
    lost: int
    waiting: int
    reason: str


class Sink(Protocol):
    """Takes answers and says how it is; an `Outlet` is one."""

    def put(self, camera: str, line: bytes) -> None:
        """Takes an answer; never waits."""
        ...

    def status(self) -> OutletStatus:
        """How it is."""
        ...

    def close(self) -> None:
        """No more answers."""
        ...


class Outlet:
    """A queue before a writer. Where it is full the oldest answer is lost, and counted.

    An answer that can't be written is kept and tried again until it is the oldest of too many.
    """

    def __init__(self, name: str, writer: Writer, queue: int = 1000, retry: float = 1.0) -> None:
        self._name, self._writer, self._most, self._retry = name, writer, queue, retry
        self._lines: collections.deque[tuple[str, bytes]] = collections.deque()
        self._changed = threading.Condition()
        self._written = self._lost = 0
        self._reason, self._closed = "", False
        self._thread = threading.Thread(target=self._run, name=f"outlet {name}", daemon=True)
        self._thread.start()

    def put(self, camera: str, line: bytes) -> None:
        """Queues an answer; never waits."""
        with self._changed:
            if len(self._lines) >= self._most:
                self._lines.popleft()
                self._lost += 1
            self._lines.append((camera, line))
            self._changed.notify()

    def status(self) -> OutletStatus:
        """How it is."""
        with self._changed:
            waiting = len(self._lines)
            return OutletStatus(self._name, self._written, self._lost, waiting, self._reason)

    def close(self, seconds: float = 5.0) -> None:
        """Writes what waits, for so long, and counts the rest as lost."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)
        self._writer.close()
        with self._changed:
            self._lost += len(self._lines)
            self._lines.clear()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closed)
                if not self._lines:
                    return
                # Kept in the queue while it is written: full queues lose what is oldest.
                entry = self._lines[0]
            try:
                self._writer.write(*entry)
            except OSError as error:
                self._failed(error.strerror or type(error).__name__)
                if self._closed:
                    return
                continue
            with self._changed:
                self._reason = ""
                self._written += 1
                if self._lines and self._lines[0] is entry:
                    self._lines.popleft()
                else:
                    self._lost -= 1  # it was counted when the queue ran over, and got through

    def _failed(self, reason: str) -> None:
        if reason != self._reason:
            _log.warning("outlet %s: %s; answers wait", self._name, reason)
        with self._changed:
            self._reason = reason
            self._changed.wait_for(lambda: self._closed, self._retry)


class LinesFile:
    """A file of JSON lines; a line is whole or not there, also on a disk that fills up.

    Args:
      path: of the file, which is appended to.
      rotate: bytes after which it is put aside as `path.1` and the others move up; 0 never.
      keep: files put aside.
    """

    def __init__(self, path: str | os.PathLike[str], rotate: int = 0, keep: int = 10) -> None:
        self._path, self._rotate, self._keep = Path(path), rotate, keep
        self._file = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, camera: str, line: bytes) -> None:
        """See `Writer`."""
        del camera
        before = os.fstat(self._file).st_size
        if self._rotate and before and before + len(line) > self._rotate:
            self._put_aside()
            before = 0
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            if written:
                os.ftruncate(self._file, before)
            raise

    def _put_aside(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        self._path.replace(self._numbered(1))
        os.close(self._file)
        self._file = self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        """See `Writer`."""
        os.close(self._file)


class StandardOutput:
    """Lines on standard output."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream or sys.stdout.buffer

    def write(self, camera: str, line: bytes) -> None:
        """See `Writer`."""
        del camera
        self._stream.write(line)
        self._stream.flush()

    def close(self) -> None:
        """Not ours."""
