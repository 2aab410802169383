"""What a program's operations are and cost, read back from its words, for profiles."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from skipconv_jax.native import schema
from skipconv_jax.native.program import Program

Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a program.

    Attributes:
      name: of a convolution; the kind of the others.
      kind: such as 'add', or 'depthwise 3x3 /2' of a convolution.
      source, out: `(h, w, c)` of its first source and of what it makes.
      macs: multiply-accumulates per output position.
      read, written: bytes per output position, every value counted once.
    """

    name: str
    kind: str
    source: Shape
    out: Shape
    macs: float
    read: float
    written: float


def operations(program: Program) -> list[Operation]:
    """The operations of a program in the order they run."""
    tensors, ops = records(program)
    return [_operation(op, tensors, n) for op, n in zip(ops, program.names, strict=True)]


def records(program: Program) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The records of a program's tensors and operations, by the schema's names."""
    words = np.asarray(program.words)
    at = schema.words(schema.HEADER)
    head = schema.unpack(schema.HEADER, words[:at])
    tensors, at = _records(words, at, schema.TENSOR, head["n_tensors"])
    ops, _ = _records(words, at, schema.OP, head["n_ops"])
    return tensors, ops


def _records(
    words: np.ndarray, at: int, record: tuple[str, ...], count: int
) -> tuple[list[Mapping[str, Any]], int]:
    size = schema.words(record)
    end = at + count * size
    return [schema.unpack(record, words[i : i + size]) for i in range(at, end, size)], end


def _operation(op: Mapping[str, Any], tensors: list[Mapping[str, Any]], name: str) -> Operation:
    out = tensors[op["out"]]
    sources = [tensors[i] for i in op["src"][: op["nsrc"]]]
    first = sources[0] if sources else out
    kind = schema.names("OpKind")[op["kind"]]
    positions = out["H"] * out["W"]
    # A source is read where outputs need it: as often per output as it has positions for each.
    read = sum(4.0 * t["H"] * t["W"] * t["C"] for t in sources) / positions
    macs = 0.0
    if kind == "conv":
        macs = op["kh"] * op["kw"] * first["C"] / op["groups"] * out["C"]
        step = f" /{op['sh']}" if op["sh"] > 1 else ""
        kind = f"{schema.names('Algo')[op['algo']]} {op['kh']}x{op['kw']}{step}"
    if kind == "input":
        read = 4.0 * out["C"]
    # What was there before is read as well, to tell what changed.
    read += 4.0 * out["C"] if kind != "output" else 0.0
    return Operation(name, kind, _shape(first), _shape(out), macs, read, 4.0 * out["C"])


def _shape(tensor: Mapping[str, Any]) -> Shape:
    return tensor["H"], tensor["W"], tensor["C"]
