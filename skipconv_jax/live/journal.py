"""Rows of one recorded video, each once and in order, whoever is killed while writing them."""

import dataclasses
import fcntl
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from skipconv_jax import whole_files
from skipconv_jax.live.outlets import LinesFile

PART = ".part"


class BusyError(ValueError):
    """Another process writes the rows of this video."""


@dataclasses.dataclass(frozen=True)
class Written:
    """What a journal holds already.

    Attributes:
      rows: whole ones; the next frame has this number.
      reference: the last row of a reference frame, and why it was one; None where there is none.
    """

    rows: int
    reference: tuple[int, str] | None


class Journal:
    """`<path>.part` while it grows, `path` once it is whole; one process at a time.

    A line that a kill left half-written is cut off, so the file is a run of whole rows 0, 1, 2...

    Args:
      path: of the finished file.
      patience: seconds to wait for a process that writes it still.

    Raises:
      BusyError: it does so for longer.
      ValueError: rows that are not 0, 1, 2...: not a journal.
    """

    def __init__(self, path: Path, patience: float = 10.0) -> None:
        self._path, self._part = path, path.with_name(path.name + PART)
        self._lines = LinesFile(self._part)
        self._lock = os.open(self._part, os.O_RDWR)
        try:
            self._hold(patience)
            self.written = self._recovered()
        except ValueError:
            self.close()
            raise
        self.rows = self.written.rows

    def _hold(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BusyError(
                        f"`out` (={self._part}) must be written by one process; another one does."
                    ) from None
                time.sleep(0.05)
        if not self._part.exists() or os.stat(self._part).st_ino != os.fstat(self._lock).st_ino:
            raise BusyError(f"`out` (={self._path}) was finished by another process meanwhile.")

    def _recovered(self) -> Written:
        rows, end, reference = 0, 0, None
        with self._part.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                row = msgspec.json.decode(line)
                if row.get("frame") != rows:
                    raise ValueError(
                        f"`out` (={self._part}) must hold the rows of frames 0, 1, 2...; row "
                        f"{rows} is of frame {row.get('frame')}. Remove the file."
                    )
                if "reset" in row:
                    reference = rows, row["reset"]
                rows, end = rows + 1, end + len(line)
        os.ftruncate(self._lock, end)
        return Written(rows, reference)

    def append(self, row: dict[str, Any]) -> None:
        """The next row.

        Raises:
          OSError: the disk is full; what is there stays whole.
        """
        if row["frame"] != self.rows:
            raise ValueError(f"`row` (=of frame {row['frame']}) must be of frame {self.rows}.")
        self._lines.write("", msgspec.json.encode(row) + b"\n")
        self.rows += 1

    def finish(self) -> None:
        """All rows are there: the file gets its name, in one move."""
        whole_files.settle(self._part, self._path)

    def close(self) -> None:
        """Lets it go."""
        self._lines.close()
        os.close(self._lock)
