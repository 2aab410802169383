"""Workers: an object in a process of its own, called by name; what is called may die with it.

worker = Local(make, *args)          # make(*args) runs in the process
worker.call("run", video)            # as of the object's method
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

_WATCH = 0.5  # seconds between two looks whether the driver is still there


class WorkerDied(Exception):
    """The process is gone, and all that it held with it."""


class CallFailed(Exception):
    """The call raised; the process goes on. Its text says what."""


class Worker(Protocol):
    """A process that owns an object; calls come one after the other."""

    def call(self, method: str, *args: Any, seconds: float | None = None) -> Any:
        """Calls the object's method.

        Raises:
          WorkerDied: the process ended, or did not answer within `seconds` and was killed.
          CallFailed: the method raised.
        """
        ...

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        ...


class Local:
    """A worker on this machine, a fresh Python process.

    Args:
      make: makes the object; found by its module and name.
      args: of `make`.
    """

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_obey, args=(theirs, make, args), daemon=True)
        self._process.start()
        theirs.close()
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid or 0

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    def call(self, method: str, *args: Any, seconds: float | None = None) -> Any:
        """See `Worker`."""
        with self._lock:
            try:
                self._ours.send((method, args))
                if not self._ours.poll(seconds):
                    self._process.kill()
                    raise WorkerDied(f"no answer within {seconds:g} s")
                right, value = self._ours.recv()
            except (EOFError, OSError):
                self._process.join(5)
                raise WorkerDied(f"exit code {self._process.exitcode}") from None
        if not right:
            raise CallFailed(value)
        return value

    def stop(self) -> None:
        """See `Worker`."""
        self._process.kill()
        self._process.join(5)
        self._ours.close()


def answered(target: Any, method: str, args: tuple[Any, ...]) -> tuple[bool, Any]:
    """What a call gives: whether it went right, and its value or what it raised."""
    try:
        return True, getattr(target, method)(*args)
    except Exception as error:  # told to who called: the worker goes on
        return False, f"{type(error).__name__}: {error}"


def _obey(connection: Connection, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """The process: makes its object when it is first called, so that a failure has a caller."""
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    target: Any = None
    while True:
        try:
            method, given = connection.recv()
        except (EOFError, OSError):
            return
        if target is None:
            try:
                target = make(*args)
            except Exception as error:  # as above: it is tried again at the next call
                connection.send((False, f"{type(error).__name__}: {error}"))
                continue
        connection.send(answered(target, method, given))


def _leave_with(driver: int) -> None:
    """Ends this process when its driver is gone, also in the middle of a call."""
    while os.getppid() == driver:
        time.sleep(_WATCH)
    os._exit(1)
