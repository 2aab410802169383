"""Files that appear whole or not at all: the one place where the product writes over a path.

Content goes to a hidden file beside the target, which is renamed when it is complete: whoever kills
the process, or fills the disk, finds what was there before. What grows by lines (metrics, journals,
a stream's rows) is appended to instead, and read up to its last whole line.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


def beside(path: str | os.PathLike[str]) -> Path:
    """Where to write what `settle` makes `path`: hidden beside it, of the same ending.

    What is no file (a pipe, `/dev/stdout`) is written directly.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        return target
    name = f".{target.stem}.{os.getpid()}-{threading.get_ident()}.partial{target.suffix}"
    return target.with_name(name)


def settle(partial: Path, path: str | os.PathLike[str]) -> None:
    """Makes a finished file `path`, in one move, once its content is on the disk.

    A link stays one: its target is replaced.
    """
    target = Path(os.path.realpath(path))
    if partial != target:
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to (see `beside`); it becomes `path` when the block ends without error.

    Raises:
      OSError: the folder is missing, full or not ours to write to; `path` is as it was.
    """
    partial = beside(path)
    try:
        yield partial
        settle(partial, path)
    finally:
        if partial != Path(os.path.realpath(path)):
            partial.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file in one move; see `writing`."""
    with writing(path) as partial:
        partial.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file as UTF-8 in one move; see `writing`."""
    write_bytes(path, text.encode())
