"""The file of a saved plan: one program with its weights, gates and names, checked before use.

    offset  0  "SKCPLAN\\0", u32 version, u32 sections, u64 bytes of the file,
               u32 CRC-32 of the 24 bytes before and of the table, u32 zero
    offset 32  per section: 4 letters, u32 CRC-32, u64 offset, u64 bytes, u64 zero
    then       the sections, each at a multiple of 64, zeros between and behind them

Little-endian. `WORD` are the program's int32, `WGHT` and `GATE` float32, `DESC` the descriptions
below, `META` JSON that only Python reads. Every byte is checked, so that no file that differs from
what was written is read. `csrc/runtime/plan_file.cpp` reads the same. A CRC finds damage, not
malice: load files of people you trust.
"""

import dataclasses
import itertools
import json
import math
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from skipconv_jax import whole_files

MAGIC = b"SKCPLAN\0"
VERSION = 1
_HEADER, _ENTRY = struct.Struct("<8sIIQ"), struct.Struct("<4sIQQQ")
_ALIGN = 64


class PlanFileError(ValueError):
    """A file that is no plan, is damaged, or is of a newer version."""


@dataclasses.dataclass(frozen=True)
class TensorDesc:
    """A frame in or a result out, as the user's arrays hold it.

    Attributes:
      name: of the leaf.
      shape: without B.
      order: the axes of `shape` in the order in which the program takes them; ascending where it
        takes them as they are, (H, W, C) or (C, H, W).
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.shape))):
            raise ValueError(f"`order` (={self.order}) must permute the axes of {self.shape}.")


@dataclasses.dataclass(frozen=True)
class MaskDesc:
    """Blocks of one convolution: `grid` (rows, columns) from `offset` in a stream's masks."""

    name: str
    offset: int
    grid: tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class SavedPlan:
    """What a file holds.

    Attributes:
      words, weights, gates: the program, as `native.Program` has them.
      inputs, outputs: in the order of the program's.
      masks: of all convolutions.
      meta: JSON values for Python; C passes them on as text.
    """

    words: np.ndarray
    weights: np.ndarray
    gates: np.ndarray
    inputs: tuple[TensorDesc, ...]
    outputs: tuple[TensorDesc, ...]
    masks: tuple[MaskDesc, ...]
    meta: Mapping[str, Any]


def write(path: str | os.PathLike[str], saved: SavedPlan) -> None:
    """Writes the file in one move: a reader never sees half of it."""
    sections = {
        b"WORD": np.ascontiguousarray(saved.words, "<i4").tobytes(),
        b"WGHT": np.ascontiguousarray(saved.weights, "<f4").tobytes(),
        b"GATE": np.ascontiguousarray(saved.gates, "<f4").tobytes(),
        b"DESC": _describe(saved),
        b"META": json.dumps(saved.meta, sort_keys=True).encode(),
    }
    at = _aligned(_HEADER.size + 8 + _ENTRY.size * len(sections))
    table = b""
    for tag, data in sections.items():
        table += _ENTRY.pack(tag, zlib.crc32(data), at, len(data), 0)
        at = _aligned(at + len(data))
    header = _HEADER.pack(MAGIC, VERSION, len(sections), at)
    with whole_files.writing(path) as partial, partial.open("wb") as file:
        file.write(header + struct.pack("<II", zlib.crc32(header + table), 0) + table)
        for data in sections.values():
            file.write(b"\0" * (_aligned(file.tell()) - file.tell()) + data)
        file.write(b"\0" * (at - file.tell()))


def read(path: str | os.PathLike[str]) -> SavedPlan:
    """Reads a file that `write` made.

    Raises:
      PlanFileError: it is no plan, is cut or damaged, or is of a newer version.
      OSError: it can't be read.
    """
    data = Path(path).read_bytes()
    sections = _sections(data, str(path))
    try:
        inputs, outputs, masks = _described(sections[b"DESC"])
        meta = json.loads(sections[b"META"])
        return SavedPlan(
            words=np.frombuffer(sections[b"WORD"], "<i4"),
            weights=np.frombuffer(sections[b"WGHT"], "<f4"),
            gates=np.frombuffer(sections[b"GATE"], "<f4"),
            inputs=inputs,
            outputs=outputs,
            masks=masks,
            meta=meta,
        )
    except (KeyError, ValueError, struct.error) as error:
        raise PlanFileError(f"`path` (={path}) is no complete plan: {error!r}") from error


def _sections(data: bytes, path: str) -> dict[bytes, bytes]:
    if len(data) < _HEADER.size + 8 or not data.startswith(MAGIC):
        raise PlanFileError(f"`path` (={path}) must be a saved plan; it does not begin as one.")
    _, version, count, size = _HEADER.unpack_from(data)
    if version > VERSION:
        raise PlanFileError(
            f"`path` (={path}) is a plan of version {version}, and this skipconv_jax reads up to "
            f"{VERSION}: upgrade it, or save the plan again."
        )
    if size != len(data):
        raise PlanFileError(f"`path` (={path}) is cut: {len(data)} of {size} bytes.")
    begin, end = _HEADER.size + 8, _HEADER.size + 8 + _ENTRY.size * count
    expected, zero = struct.unpack_from("<II", data, _HEADER.size)
    if end > size or zero or zlib.crc32(data[: _HEADER.size] + data[begin:end]) != expected:
        raise PlanFileError(f"`path` (={path}) is damaged: its table of sections.")
    sections = {}
    parts = [(0, end)]
    for at in range(begin, end, _ENTRY.size):
        tag, crc, offset, length, _ = _ENTRY.unpack_from(data, at)
        part = data[offset : offset + length]
        if len(part) != length or zlib.crc32(part) != crc:
            raise PlanFileError(f"`path` (={path}) is damaged: section {tag.decode('latin-1')}.")
        sections[tag] = part
        parts.append((offset, offset + length))
    # What no sum covers is zero, so that a file is the one that was written or refused.
    for (_, last), (first, _) in itertools.pairwise([*sorted(parts), (size, size)]):
        if first < last or data.count(0, last, first) != first - last:
            raise PlanFileError(f"`path` (={path}) is damaged: bytes between its sections.")
    return sections


def _describe(saved: SavedPlan) -> bytes:
    out = struct.pack("<III", len(saved.inputs), len(saved.outputs), len(saved.masks))
    for t in (*saved.inputs, *saved.outputs):
        out += _text(t.name) + struct.pack("<I", len(t.shape))
        out += struct.pack(f"<{2 * len(t.shape)}I", *t.shape, *t.order)
    for m in saved.masks:
        out += _text(m.name) + struct.pack("<III", m.offset, *m.grid)
    return out


def _described(
    data: bytes,
) -> tuple[tuple[TensorDesc, ...], tuple[TensorDesc, ...], tuple[MaskDesc, ...]]:
    at = 0

    def numbers(count: int) -> tuple[int, ...]:
        nonlocal at
        values = struct.unpack_from(f"<{count}I", data, at)
        at += 4 * count
        return values

    def text() -> str:
        nonlocal at
        (length,) = numbers(1)
        if length > len(data) - at:
            raise ValueError("a name longer than its section")
        at += length
        return data[at - length : at].decode()

    def tensor() -> TensorDesc:
        name, (rank,) = text(), numbers(1)
        if rank > 8:
            raise ValueError(f"a tensor of {rank} axes")
        return TensorDesc(name, numbers(rank), numbers(rank))

    def mask() -> MaskDesc:
        name, (offset, rows, columns) = text(), numbers(3)
        return MaskDesc(name, offset, (rows, columns))

    n_in, n_out, n_masks = numbers(3)
    if n_in + n_out + n_masks > len(data):
        raise ValueError("more descriptions than bytes")
    inputs = tuple(tensor() for _ in range(n_in))
    outputs = tuple(tensor() for _ in range(n_out))
    masks = tuple(mask() for _ in range(n_masks))
    return inputs, outputs, masks


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<I", len(data)) + data


def _aligned(offset: int) -> int:
    return math.ceil(offset / _ALIGN) * _ALIGN
