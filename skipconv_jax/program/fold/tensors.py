"""Tensors that nodes make, and views of them written out as maps `(B, H, W, C)`."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np

from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.views import Atom, Dim, Ref, View, indices, is_whole, whole

NHWC, NCHW = (0, 1, 2, 3), (0, 2, 3, 1)


class Tensors:
    """What has been made so far.

    Attributes:
      nodes: in order of evaluation.
      avals: shape and dtype of every stored tensor.
      order: axes of rank-4 arrays of the trace that are batch, rows, columns and channels where
        nothing else tells.
    """

    def __init__(self, order: tuple[int, ...] = NHWC) -> None:
        self.order = order
        self.nodes: list[g.Node] = []
        self.avals: dict[Ref, jax.ShapeDtypeStruct] = {}
        self._makers: dict[Ref, g.Node] = {}
        self._written: dict[Hashable, Ref] = {}

    def new(self, shape: Sequence[int], dtype: Any) -> Ref:
        """A tensor that somebody is about to make."""
        ref = len(self.avals)
        self.avals[ref] = jax.ShapeDtypeStruct(tuple(shape), dtype)
        return ref

    def make(self, node: Callable[[Ref], g.Node], shape: Sequence[int], dtype: Any = None) -> Ref:
        """Adds a node whose tensor has this shape."""
        ref = self.new(shape, np.float32 if dtype is None else dtype)
        made = node(ref)
        self.nodes.append(made)
        self._makers[ref] = made
        return ref

    def maker(self, ref: Ref) -> g.Node | None:
        """What makes a tensor; None for a frame."""
        return self._makers.get(ref)

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Of a stored tensor."""
        return self.avals[ref].shape

    def arranged(self, ref: Ref) -> View:
        """An array of the trace, stored channels last where it is a map."""
        shape = self.shape(ref)
        view = whole(ref, shape)
        if len(shape) != 4 or self.order == NHWC:
            return view
        stored = [shape[axis] for axis in self.order]
        moved = view.transpose(self.order)
        ref = self.make(lambda out: g.LayoutNode((ref,), out, moved), stored, self.avals[ref].dtype)
        return whole(ref, stored, [self.order.index(axis) for axis in range(4)])

    def once(self, key: Hashable, make: Callable[[], Ref]) -> Ref:
        """What `make` made when it was first asked for this key."""
        if key not in self._written:
            self._written[key] = make()
        return self._written[key]

    # -- views -------------------------------------------------------------------------------------
    def array(self, view: View) -> Ref:
        """A tensor that is stored as the view looks."""
        shape = self.shape(view.ref)
        if is_whole(view, shape) == tuple(range(len(shape))) and view.shape == shape:
            return view.ref
        key = (view.ref, view.dims, view.offsets, "array")
        return self.once(key, lambda: self._laid_out(view))

    def _laid_out(self, view: View) -> Ref:
        maker, order = self.maker(view.ref), is_whole(view, self.shape(view.ref))
        if isinstance(maker, g.LayoutNode) and order is not None:
            # Back to what it was before it was arranged.
            back = tuple(self.order.index(axis) for axis in range(4))
            if order == back and view.shape == self.shape(maker.inputs[0]):
                return maker.inputs[0]
        dtype, shape = self.avals[view.ref].dtype, self.shape(view.ref)
        if len(view.dims) == 2 and len(shape) == 4 and is_whole(view.as_position(), shape):
            return self.make(lambda out: g.ReshapeNode((view.ref,), out), view.shape, dtype)
        return self.make(lambda out: g.LayoutNode((view.ref,), out, view), view.shape, dtype)

    def roles(self, *views: View) -> tuple[int, ...]:
        """Which axes of arrays of one shape are batch, rows, columns and channels."""
        for view in views:
            shape = self.shape(view.ref)
            order = is_whole(view, shape) if len(shape) == len(view.dims) == 4 else None
            if order is not None:
                return tuple(order.index(axis) for axis in range(4))
            if len(shape) == 2 and len(view.dims) == 4:
                # A vector's channels are where they are, whatever the layout of maps.
                of = [i for i in (1, 2, 3) if any(a.axis == 1 for a in view.dims[i])]
                if len(of) == 1:
                    return (0, *(i for i in (1, 2, 3) if i != of[0]), of[0])
        return self.order

    def map(self, view: View, roles: Sequence[int]) -> Ref:
        """A tensor `(B, H, W, C)`, where the view's axes are those in the order of `roles`."""
        wanted = view.transpose(roles)
        if is_whole(wanted, self.shape(view.ref)) == (0, 1, 2, 3):
            return view.ref
        key = (wanted.ref, wanted.dims, wanted.offsets)
        return self.once(key, lambda: self._as_map(wanted))

    def _as_map(self, wanted: View) -> Ref:
        made = _arrange(self, wanted)
        return self.array(wanted) if made is None else made


def _arrange(tensors: Tensors, view: View) -> Ref | None:
    """`Tensors.map` in operations of the engine: crop, space to depth, channels, depth to space,
    upsampling; None where the view is no such chain."""
    ref, shape = view.ref, tensors.shape(view.ref)
    if len(shape) == 2:
        return _arrange_vector(tensors, view)
    if len(shape) != 4 or view.dims[0] != whole(ref, shape).dims[0] or view.offsets[0]:
        return None
    parts = [_spatial(view.dims[axis], axis) for axis in (1, 2)]
    if None in parts:
        return None
    inner = [a for a in view.dims[3] if a.axis in (1, 2)]
    if any(a.axis is None or a.axis == 0 for a in view.dims[3]):
        return None
    cropped, depth = _cropped(tensors, view, [p[0] for p in parts if p], inner)
    if cropped is None:
        return None
    picked = _picked(tensors, view, cropped, depth, [p[1] for p in parts if p])
    return None if picked is None else _repeated(tensors, picked, [p[2] for p in parts if p])


def _spatial(dim: Dim, axis: int) -> tuple[Atom, Atom | None, int] | None:
    """An axis as stored positions, the channels it takes in, and how often each is repeated."""
    atoms = list(dim)
    own = atoms.pop(0) if atoms and atoms[0].axis == axis else Atom(axis, 1, 1)
    depth = atoms.pop(0) if atoms and atoms[0].axis == 3 else None
    factor = atoms.pop(0).size if atoms and atoms[0].axis is None else 1
    return None if atoms else (own, depth, factor)


def _cropped(
    tensors: Tensors, view: View, own: Sequence[Atom], inner: Sequence[Atom]
) -> tuple[Ref | None, int]:
    """The positions that are read, and the block that the channels take in."""
    ref, shape = view.ref, tensors.shape(view.ref)
    starts, strides = view.offsets[1:3], tuple(a.stride for a in own)
    sizes = tuple(a.size for a in own)
    dtype = tensors.avals[ref].dtype
    if inner:
        block = inner[0].size
        plain = {(a.axis, a.size, a.stride) for a in inner} == {(1, block, 1), (2, block, 1)}
        if not plain or any(starts) or strides != (block, block):
            return None, 1
        if sizes != (shape[1] // block, shape[2] // block):
            return None, 1
        deep = (shape[0], *sizes, shape[3] * block * block)
        return tensors.make(lambda o: g.SpaceToDepthNode((ref,), o, block), deep, dtype), block
    if (starts, sizes) == ((0, 0), shape[1:3]) and strides == (1, 1):
        return ref, 1
    out = (shape[0], sizes[0], sizes[1], shape[3])
    key = (ref, starts, sizes, strides, "crop")
    made = tensors.once(
        key,
        lambda: tensors.make(lambda o: g.CropNode((ref,), o, starts, sizes, strides), out, dtype),
    )
    return made, 1


def _picked(
    tensors: Tensors, view: View, ref: Ref, block: int, depth: Sequence[Atom | None]
) -> Ref | None:
    """Channels in their order, those that become positions first."""
    channels = tensors.shape(view.ref)[3]
    strides = {1: channels * block, 2: channels, 3: 1}
    blocks = [a for a in depth if a is not None]
    if blocks and (len(blocks) != 2 or blocks[0].size != blocks[1].size or block > 1):
        return None
    index = indices([*blocks, *view.dims[3]], strides, view.offsets[3])
    shape, dtype = tensors.shape(ref), tensors.avals[ref].dtype
    if len(index) != shape[3] or (index != np.arange(shape[3])).any():
        picked = tuple(int(i) for i in index)
        source = ref
        ref = tensors.make(
            lambda o: g.ChannelsNode((source,), o, picked), (*shape[:3], len(index)), dtype
        )
    if blocks:
        size, inner = blocks[0].size, ref
        b, h, w, c = tensors.shape(inner)
        out = (b, h * size, w * size, c // size**2)
        ref = tensors.make(lambda o: g.DepthToSpaceNode((inner,), o, size), out, dtype)
    return ref


def _repeated(tensors: Tensors, ref: Ref, factors: Sequence[int]) -> Ref:
    if tuple(factors) == (1, 1):
        return ref
    b, h, w, c = tensors.shape(ref)
    out, dtype = (b, h * factors[0], w * factors[1], c), tensors.avals[ref].dtype
    if factors[0] == factors[1]:
        return tensors.make(lambda o: g.UpsampleNode((ref,), o, factors[0]), out, dtype)
    taps = tuple(
        (np.repeat(np.arange(n), f)[:, None], np.ones((n * f, 1), np.float32))
        for n, f in zip((h, w), factors, strict=True)
    )
    return tensors.make(lambda o: g.ResizeNode((ref,), o, taps), out, dtype)


def _arrange_vector(tensors: Tensors, view: View) -> Ref | None:
    """`(B, C)` as a map of one position, or that one repeated."""
    b, c = tensors.shape(view.ref)
    full = whole(view.ref, (b, c))
    if view.dims[0] != full.dims[0] or view.dims[3] != full.dims[1] or any(view.offsets):
        return None
    if any(a.axis is not None for dim in view.dims[1:3] for a in dim):
        return None
    dtype = tensors.avals[view.ref].dtype
    ref = tensors.make(lambda o: g.ReshapeNode((view.ref,), o), (b, 1, 1, c), dtype)
    return _repeated(tensors, ref, view.shape[1:3])
