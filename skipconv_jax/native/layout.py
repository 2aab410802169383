"""Where the tensors of a program lie: padding, what must be stored, and shared scratch."""

import dataclasses

from skipconv_jax.native.packing import round_up

CELL = 4


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
    cur: int = -1
    delta: int = -1
    m: int = -1
    cells: int = -1
    prev: int = -1

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns with the border."""
        return self.h + self.low[0] + self.high[0], self.w + self.low[1] + self.high[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Cells in which change is tracked."""
        return -(-self.h // CELL), -(-self.w // CELL)

    def words(self) -> list[int]:
        """The 16 integers of `struct Tensor`."""
        hp, wp = self.padded
        place = [self.h, self.w, self.c, self.cs, *self.low, hp, wp]
        return [*place, self.cur, self.delta, self.m, self.cells, *self.grid, self.prev, 0]


class Arena:
    """Hands out 64-byte aligned ranges of one stream's state; the first line is the warm flag."""

    def __init__(self) -> None:
        self.size = 16

    def take(self, floats: int) -> int:
        """Offset of a new range."""
        at = self.size
        self.size += round_up(floats, 16)
        return at


def unify_borders(tensors: list[TensorSpec]) -> None:
    """Gives tensors of one shape one border, so that they can share scratch."""
    classes: dict[tuple[int, int, int], list[TensorSpec]] = {}
    for t in tensors:
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
        t.cells = arena.take(2 + -(-2 * ch * cw // 4))
        if t.needs_cur:
            t.cur = arena.take(hp * wp * t.cs)
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
            t.delta, t.m = arena.take(hp * wp * t.cs), arena.take(hp * wp + 16)
            tenants.append([index])
    for tenants in slots.values():
        for slot in tenants:
            for k, index in enumerate(slot):
                tensors[index].prev = slot[k - 1]
