"""Writing data sets so that a kill at any point leaves nothing half-written behind as if whole."""

import json
from pathlib import Path
from typing import Any

import msgspec

from skipconv_jax import json_files, whole_files

NOTE = "synthetic.json"
PARTIAL = ".partial"


def write_text(path: Path, text: str) -> None:
    """Writes a text file; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole_files.write_text(path, text)


class Note(msgspec.Struct, frozen=True):
    """What readers want to know of how a generated set was made."""

    mirrorable: bool = True


def read_note(root: Path) -> Note | None:
    """The note of a generated set, None where real files lie.

    Raises:
      JsonError: the note is damaged.
    """
    path = root / NOTE
    return json_files.read(path, Note) if path.is_file() else None


def write_note(out: Path, note: dict[str, Any]) -> None:
    """Records in `out` how a generated set was made; refuses to mix two.

    Raises:
      ValueError: `out` holds a set made with other settings.
    """
    path = out / NOTE
    if path.is_file():
        found = json_files.read(path, dict[str, Any])
        if found != note:
            raise ValueError(
                f"`out` (={str(out)!r}) must not hold a set made with other settings "
                f"({found}); use another folder or delete this one."
            )
        return
    write_text(path, json.dumps(note, indent=2) + "\n")
