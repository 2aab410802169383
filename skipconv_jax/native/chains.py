"""Chains: which 1x1 convolutions are computed with what makes their input, tile by tile.

What such a convolution (a link) reads is made for it alone, on the same blocks. So a tile of it
goes from one operation to the next in a core's own cache, and is stored nowhere but in the link's
reference, which a closed loop keeps anyway.
"""

from collections.abc import Sequence

from skipconv_jax.native.layout import OpRecord, TensorSpec
from skipconv_jax.native.schema import MAX_LINKS, REGION

BLOCKS = (4, 8)  # sides of blocks that a tile is made of whole ones of
FEW_BLOCKS, HEAVY = 8, 1_000_000  # on a map of few blocks a link's products per block are limited
TILE = 4096  # floats of one row of blocks' height that stay in a core's own cache, about


def link(tensors: Sequence[TensorSpec], ops: Sequence[OpRecord]) -> None:
    """Finds the chains of a program, says so in its records, and frees what they need not store."""
    readers: dict[int, list[int]] = {}
    for i, op in enumerate(ops):
        for source in (*op.sources, op.fields.get("res", -1)):
            readers.setdefault(source, []).append(i)
    heads: dict[int, int] = {}  # link: the operation it is computed with
    for i, op in enumerate(ops):
        if op.kind == "output":
            continue
        links, depth = readers.get(op.out, []), _depth(i, heads)
        if not links or depth >= MAX_LINKS or not _leads(op, ops[links[0]]):
            continue
        if all(_follows(ops[k], op.out, tensors) for k in links):
            _join(tensors, ops, i, links)
            heads |= dict.fromkeys(links, i)


def _depth(i: int, heads: dict[int, int]) -> int:
    """Links before operation i in its chain."""
    return 1 + _depth(heads[i], heads) if i in heads else 0


def _leads(op: OpRecord, first: OpRecord) -> bool:
    """Whether links can follow: the operation makes whole blocks of theirs from what is stored."""
    block = first.fields["b"] if first.spec is not None else 0
    if op.kind == "channels":
        return bool(block == REGION)
    plain = op.kind == "conv" and op.fields["res"] < 0 and len(op.sources) == 1
    return bool(plain and op.fields["b"] == block and _closed(op))


def _follows(op: OpRecord, source: int, tensors: Sequence[TensorSpec]) -> bool:
    """Whether it is a link: plain 1x1, closed loop, a gate that one position's change settles."""
    f, spec = op.fields, op.spec
    if spec is None or op.sources != [source] or f["res"] >= 0 or not _closed(op):
        return False
    heavy = f["b"] ** 2 * spec.kernel.size > HEAVY and f["nbh"] * f["nbw"] < FEW_BLOCKS
    fits = spec.pointwise and spec.gate.kind in ("norm", "always") and f["b"] in BLOCKS
    return fits and not heavy and tensors[source].cs % 16 == 0


def _closed(op: OpRecord) -> bool:
    return op.spec is not None and op.spec.policy == "closed_loop"


def _join(
    tensors: Sequence[TensorSpec], ops: Sequence[OpRecord], head: int, links: Sequence[int]
) -> None:
    made = tensors[ops[head].out]
    made.needs_cur = made.needs_delta = made.needs_old = False
    widest = max(made.cs, *(tensors[ops[k].sources[0]].cs for k in links))
    for k in (head, *links):
        # Rows of a tile go on to the links: as wide as a core's cache takes.
        if ops[k].kind == "conv" and ops[k].fields["mode"] == 64:
            ops[k].fields["mode"] = min(max(TILE // widest // 8 * 8, 8), 64)
    ops[head].fields["tail"] = links[0]
    for k, following in zip(links, [*links[1:], -1], strict=True):
        ops[k].fields |= {"head": head, "next": following}
        tensors[ops[k].out].born = tensors[ops[head].out].born
