"""One training per folder: two would overwrite each other's checkpoints and metrics."""

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

NAME = "training.lock"
_held: dict[str, int] = {}  # by this process: folder to depth


class LockedError(ValueError):
    """Another process trains in the folder; says which, where and since when."""


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds `<folder>/training.lock`, which says who holds it; entering twice is fine.

    The system frees the lock when its process ends, however it ends: what a killed training leaves
    is a file without a lock, which the next one takes over. The file itself stays.

    Raises:
      LockedError: another process holds it.
      OSError: the folder can't be written, or its file system has no locks.
    """
    key = os.path.realpath(folder)
    if _held.get(key):
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(
                f"`workdir` (={folder}) must not be trained in by two processes; {_owner(file)} "
                "trains there. Wait for it, stop it, or use another --workdir."
            ) from error
        file.truncate(0)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        file.write(json.dumps(owner | {"command": " ".join(sys.argv)[:200]}) + "\n")
        file.flush()
        _held[key] = 1
        try:
            yield
        finally:
            _held[key] = 0


def _owner(file: object) -> str:
    """Who wrote the lock and how long ago; the holder may be about to write it."""
    try:
        file.seek(0)  # type: ignore[attr-defined]
        owner = json.loads(file.read())  # type: ignore[attr-defined]
        minutes = (time.time() - float(owner["since"])) / 60
        return (
            f"process {int(owner['pid'])} on {owner['host']}, since {minutes:.1f} minutes "
            f"({owner['command']})"
        )
    except (ValueError, KeyError, TypeError):
        return "another process"
