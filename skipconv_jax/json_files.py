"""JSON files into typed objects: the one place where a file's content is checked and named.

A type (msgspec's structs and constraints) says what a file must hold; everything that can be wrong
with it, from bytes that are no text to a number past its range, is one `JsonError` that names the
file, the place in it and the constraint. Numbers without bounds in their type may still be NaN.
"""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

T = TypeVar("T")
MAX_BYTES = 1 << 30

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
# Constraints refuse NaN and infinity too, which Python's JSON writes and reads.
Finite = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]


class JsonError(ValueError):
    """A JSON file that can't be read or holds something else.

    Attributes:
      reason: what is wrong, without the file.
      place: where, as in `$.images[3].id`; '$' for the whole.
    """

    def __init__(self, path: Path, reason: str, place: str = "$") -> None:
        self.reason, self.place = reason, place
        where = "" if place == "$" else f" at {place}"
        super().__init__(f"{path}: {reason}{where}.")


def read(path: str | os.PathLike[str], kind: type[T]) -> T:
    """Content of a JSON file as a `kind`; a byte-order mark and UTF-16 are understood.

    Raises:
      JsonError: no such file, no JSON, nested too deep, or content that is no `kind`.
    """
    path = Path(path)
    return convert(path, load(path), kind)


def load(path: Path) -> Any:
    """A file's JSON, unchecked.

    Raises:
      JsonError: no such file, no JSON, or nested deeper than Python's recursion limit.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise JsonError(path, f"it has {size} bytes, at most {MAX_BYTES} are read")
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise JsonError(path, "it is nested too deep") from error
    except OSError as error:
        raise JsonError(path, f"it can't be read ({error.strerror or error})") from error
    except JsonError:
        raise
    except ValueError as error:
        raise JsonError(path, f"it is no valid JSON ({error})") from error


def convert(path: Path, content: Any, kind: type[T]) -> T:
    """Parsed content as a `kind`.

    Raises:
      JsonError: it is none; names the place, the value and the constraint.
    """
    try:
        return msgspec.convert(content, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        reason, _, place = str(error).partition(" - at `")
        place = place.rstrip("`") or "$"
        raise JsonError(path, f"{_lower(reason)}, not {_shown(content, place)}", place) from error


def brief(value: Any, most: int = 120) -> str:
    """`repr` of a value from a file, cut to what fits in a line of a message."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _shown(content: Any, place: str) -> str:
    """The value at a place, cut to a line."""
    try:
        for key, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", place):
            content = content[key] if key else content[int(index)]
        text = json.dumps(content)
    except (LookupError, TypeError, ValueError, RecursionError):
        text = "what is there"
    return text if len(text) <= 120 else f"{text[:120]}..."
