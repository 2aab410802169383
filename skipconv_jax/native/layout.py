"""Where the tensors of a program lie: padding, what must be stored, and shared scratch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from skipconv_jax.native.packing import round_up
from skipconv_jax.native.schema import CELL, REGION
from skipconv_jax.native.specs import Activation, ConvSpec


@dataclasses.dataclass(frozen=True)
class Ref:
    """A tensor of a program under construction, `(B, h, w, c)`."""

    index: int
    h: int
    w: int
    c: int


@dataclasses.dataclass
class OpRecord:
    """One operation of a program under construction.

    Attributes:
      kind: of the schema's `OpKind`.
      fields: of the schema's record.
      sources: tensors it reads.
      out: tensor it makes.
      name: of a convolution.
      spec: of a convolution of floats.
      state: floats of the state that a field of the record is the offset of.
    """

    kind: str
    fields: dict[str, Any]
    sources: list[int]
    out: int
    name: str = ""
    spec: ConvSpec | None = None
    state: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class TensorSpec:
    """One tensor of a program; offsets are floats in a stream's arena, -1 where not stored."""

    h: int
    w: int
    c: int
    cs: int
    low: tuple[int, int] = (0, 0)
    high: tuple[int, int] = (0, 0)
    born: int = 0
    dies: int = 0
    needs_cur: bool = False
    needs_delta: bool = False
    needs_old: bool = False
    aligned: bool = True  # whether what is written of it at a time is whole cells
    old_dies: int = 0
    cur: int = -1
    delta: int = -1
    m: int = -1
    old: int = -1
    cells: int = -1
    prev: int = -1
    bytes: bool = False  # a value is a byte; nothing but values is stored
    zero: int = -1  # of bytes: the border's; -1 as long as nobody reads it

    @property
    def stored(self) -> int:
        """Floats that the values take, border included."""
        hp, wp = self.padded
        size = hp * wp * self.cs
        return -(-size // 4) if self.bytes else size

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns with the border."""
        return self.h + self.low[0] + self.high[0], self.w + self.low[1] + self.high[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Cells in which change is tracked."""
        return -(-self.h // CELL), -(-self.w // CELL)

    def widen(self, spec: ConvSpec, out: tuple[int, int], extra: int) -> None:
        """Makes the border hold what a convolution with `out` positions reads, and `extra` more."""
        low, high = list(self.low), list(self.high)
        for i, size in enumerate((self.h, self.w)):
            before = spec.padding[i][0]
            last = (out[i] - 1) * spec.strides[i] + spec.extent[i] - before + extra
            low[i], high[i] = max(low[i], before), max(high[i], last - size)
        self.low, self.high = (low[0], low[1]), (high[0], high[1])

    def fields(self) -> Mapping[str, int]:
        """Values of the schema's record."""
        hp, wp = self.padded
        ch, cw = self.grid
        shape = {"H": self.h, "W": self.w, "C": self.c, "Cs": self.cs}
        border = {"pt": self.low[0], "pl": self.low[1], "Hp": hp, "Wp": wp, "ch": ch, "cw": cw}
        stored = {"cur": self.cur, "delta": self.delta, "m": self.m, "cells": self.cells}
        stored["old"] = self.old
        of_bytes = {"bytes": int(self.bytes), "zero": max(self.zero, 0)}
        return {**shape, **border, **stored, **of_bytes, "prev": self.prev}


PURPOSES: Mapping[str, str] = {
    "values": "tensors as they are, which the next frame updates where they change; not those that "
    "are a 1x1 layer's reference and nothing else",
    "references": "inputs as they were when a block last fired; written once one changes unfired",
    "sums": "outputs before the activation, which a residual or a change is added to",
    "scratch": "changes and old values, of one frame and shared among tensors",
    "marks": "what changed, thresholds and norms that were seen",
}
"""What a stream's state is kept for, and why."""


class Arena:
    """Hands out 64-byte aligned ranges of one stream's state; the first line is the warm flag.

    Attributes:
      size: floats in all.
      kept: floats by what they are kept for, of `PURPOSES`.
    """

    def __init__(self) -> None:
        self.size = 16
        self.kept = dict.fromkeys(PURPOSES, 0)

    def take(self, floats: int, purpose: str) -> int:
        """Offset of a new range."""
        at = self.size
        self.size += round_up(floats, 16)
        self.kept[purpose] += round_up(floats, 16)
        return at


def unify_borders(tensors: list[TensorSpec]) -> None:
    """Gives tensors of one shape one border, so that they can share scratch."""
    classes: dict[tuple[int, int, int], list[TensorSpec]] = {}
    for t in tensors:
        if not t.bytes:
            classes.setdefault((t.h, t.w, t.cs), []).append(t)
    for same in classes.values():
        low = tuple(max(t.low[i] for t in same) for i in (0, 1))
        high = tuple(max(t.high[i] for t in same) for i in (0, 1))
        for t in same:
            t.low, t.high = (low[0], low[1]), (high[0], high[1])


def place(tensors: list[TensorSpec], arena: Arena) -> None:
    """Gives every tensor its ranges; changes live in scratch reused once their readers ran."""
    unify_borders(tensors)
    slots: dict[tuple[int, ...], list[list[int]]] = {}
    order = sorted(range(len(tensors)), key=lambda i: tensors[i].born)
    for index in order:
        t = tensors[index]
        hp, wp = t.padded
        ch, cw = t.grid
        t.cells = arena.take(4 + -(-2 * ch * cw // 4), "marks")
        if t.needs_cur:
            t.cur = arena.take(t.stored, "values")
        if not t.needs_delta:
            continue
        shape = (t.h, t.w, t.cs)
        tenants = slots.setdefault(shape, [])
        # The producer still reads its inputs while it writes: a slot is free after its last reader.
        free = [s for s in tenants if max(tensors[i].dies for i in s) < t.born]
        if free:
            slot = free[0]
            t.delta, t.m = tensors[slot[0]].delta, tensors[slot[0]].m
            slot.append(index)
        else:
            t.delta = arena.take(hp * wp * t.cs, "scratch")
            t.m = arena.take(hp * wp + 16, "scratch")
            tenants.append([index])
    for tenants in slots.values():
        for slot in tenants:
            for k, index in enumerate(slot):
                tensors[index].prev = slot[k - 1]


def place_old(tensors: Sequence[TensorSpec], arena: Arena) -> None:
    """Old values and what changed by, in scratch that is free again after its last reader."""
    held: list[tuple[int, int, int]] = []  # offset, floats, last reader
    found: list[tuple[TensorSpec, int, int]] = []
    top = 0
    for t in sorted((t for t in tensors if t.needs_old and t.aligned), key=lambda t: t.born):
        held = sorted(h for h in held if h[2] >= t.born)
        values = round_up(t.h * t.w * t.cs, 16)
        hp, wp = t.padded
        size = values + (0 if t.needs_delta else round_up(hp * wp + 16, 16))
        at = 0
        for offset, floats, _ in held:
            if offset - at >= size:
                break
            at = max(at, offset + floats)
        held.append((at, size, t.old_dies))
        top = max(top, at + size)
        found.append((t, at, values))
    base = arena.take(top, "scratch")
    for t, at, values in found:
        t.old = base + at
        if not t.needs_delta:
            t.m = t.old + values


def place_op(op: OpRecord, tensors: Sequence[TensorSpec], arena: Arena) -> None:
    """Gives one operation the state of its own."""
    if op.kind == "spatial":
        x = tensors[op.sources[0]]
        op.fields["z"] = arena.take(-(-x.h // REGION) * -(-x.w // REGION) * x.cs, "sums")
    for field, floats in op.state.items():
        op.fields[field] = arena.take(floats, "references" if field == "ref" else "marks")
    if op.spec is not None:
        _place_conv(op.fields, op.spec, tensors[op.sources[0]], tensors[op.out], arena)


def _place_conv(
    f: dict[str, Any], spec: ConvSpec, x: TensorSpec, out: TensorSpec, arena: Arena
) -> None:
    policy, blocks, residual = spec.policy, f["nbh"] * f["nbw"], f["res"] >= 0
    previous = policy == "previous"
    if previous or residual:
        plain = Activation.of(spec.act).fn == "none" and (previous or not residual)
        if plain and out.needs_cur:
            # What comes out is what goes in: one range serves as both.
            wp = out.padded[1]
            f["z"] = out.cur + (out.low[0] * wp + out.low[1]) * out.cs
            f["zpitch"] = wp * out.cs
        else:
            f["z"], f["zpitch"] = arena.take(out.h * out.w * out.cs, "sums"), out.w * out.cs
    # An always firing link never looks back.
    if policy == "closed_loop" and not (f["head"] >= 0 and spec.gate.kind == "always"):
        rows, cols = (
            (spec.gate.block - 1) * s + e for s, e in zip(spec.strides, spec.extent, strict=True)
        )
        f["ref"] = arena.take(blocks * rows * cols * x.cs, "references")
    if not previous:
        # The last threshold, then per block the last mask, whether a reference tile is kept, and
        # how much can have changed since.
        f["sig"] = arena.take(1 + 3 * blocks, "marks")
    if policy == "accumulate":
        f["acc"] = arena.take(blocks, "marks")
    if f["nsrc"] == 2 and policy != "closed_loop":
        f["top"] = arena.take(blocks * x.cs, "marks")


def lay_out(tensors: list[TensorSpec], ops: Sequence[OpRecord]) -> Arena:
    """Places everything in one stream's state."""
    arena = Arena()
    for op in ops:
        if op.kind != "output":
            tensors[op.out].dies = max(tensors[op.out].dies, tensors[op.out].born)
    place(tensors, arena)
    place_old(tensors, arena)
    for op in ops:
        place_op(op, tensors, arena)
    return arena
