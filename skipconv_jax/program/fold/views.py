"""Arrays of the trace as views of stored tensors: moving axes, slicing and repeating cost nothing.

A network from PyTorch or ONNX keeps its maps as `(B, C, H, W)`, splits channels by reshapes and
swaps axes; the folded graph stores every map as `(B, H, W, C)`. A `View` says how an array of the
trace is indexed into the stored tensor: each of its axes is a product of atoms, and atom (axis,
size, stride) with index i moves i * stride along a stored axis.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Ref = int


@dataclasses.dataclass(frozen=True)
class Atom:
    """Part of an axis: `size` steps of `stride` along a stored axis; None repeats (a broadcast)."""

    axis: int | None
    size: int
    stride: int


Dim = tuple[Atom, ...]


@dataclasses.dataclass(frozen=True)
class View:
    """An array of the trace.

    Attributes:
      ref: the stored tensor.
      dims: per axis its atoms, the slowest first; none for an axis of size 1.
      offsets: per stored axis the index of the first element.
    """

    ref: Ref
    dims: tuple[Dim, ...]
    offsets: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return tuple(math.prod(a.size for a in dim) for dim in self.dims)

    def transpose(self, order: Sequence[int]) -> "View":
        """Axes in another order."""
        return dataclasses.replace(self, dims=tuple(self.dims[i] for i in order))

    def as_position(self) -> "View":
        """`(B, C)` as `(B, 1, 1, C)`."""
        batch, channels = self.dims
        return dataclasses.replace(self, dims=(batch, (), (), channels))

    def on(self, ref: Ref) -> "View":
        """The same view of another tensor of the same shape."""
        return dataclasses.replace(self, ref=ref)


def whole(ref: Ref, shape: Sequence[int], order: Sequence[int] | None = None) -> View:
    """A tensor as it is stored; axis i of the array is stored axis `order[i]`."""
    order = range(len(shape)) if order is None else order
    dims = tuple(_dim([Atom(axis, shape[axis], 1)]) for axis in order)
    return View(ref, dims, (0,) * len(shape))


def laid(ref: Ref, shape: Sequence[int], roles: Sequence[int]) -> View:
    """A tensor `(B, H, W, C)` as an array whose axes `roles` are those, in that order."""
    order = list(roles)
    return whole(ref, shape, [order.index(i) for i in range(len(order))])


def _dim(atoms: Sequence[Atom]) -> Dim:
    """Without atoms of size 1, and neighbours that step evenly joined."""
    found: list[Atom] = []
    for atom in atoms:
        if atom.size == 1:
            continue
        last = found[-1] if found else None
        if last and last.axis == atom.axis and last.stride == atom.size * atom.stride:
            found[-1] = Atom(atom.axis, last.size * atom.size, atom.stride)
        else:
            found.append(atom)
    return tuple(found)


def reshape(view: View, shape: Sequence[int]) -> View | None:
    """Other axes of the same elements in the same order; None if atoms don't divide."""
    left = [atom for dim in view.dims for atom in dim][::-1]
    dims: list[Dim] = []
    for size in shape:
        taken: list[Atom] = []
        need = size
        while need > 1:
            if not left:
                return None
            atom = left.pop()
            if need % atom.size == 0:
                taken.append(atom)
                need //= atom.size
            elif atom.size % need == 0:
                rest = atom.size // need
                taken.append(Atom(atom.axis, need, atom.stride * rest))
                left.append(Atom(atom.axis, rest, atom.stride))
                need = 1
            else:
                return None
        dims.append(_dim(taken))
    return None if left else dataclasses.replace(view, dims=tuple(dims))


def broadcast(view: View, shape: Sequence[int], places: Sequence[int]) -> View:
    """As `broadcast_in_dim`: axis i of the view becomes axis `places[i]`, the others repeat."""
    dims: list[Dim] = [(Atom(None, n, 0),) if n > 1 else () for n in shape]
    for i, at in enumerate(places):
        if view.shape[i] == shape[at]:
            dims[at] = view.dims[i]
    return dataclasses.replace(view, dims=tuple(dims))


def slice_axis(view: View, axis: int, start: int, size: int, step: int) -> View | None:
    """`size` elements from `start` on; None where the axis has several atoms."""
    dim = view.dims[axis]
    if start == 0 and size == view.shape[axis]:
        return view
    if len(dim) > 1:
        return None
    dims, offsets = list(view.dims), list(view.offsets)
    if dim:
        atom = dim[0]
        dims[axis] = _dim([Atom(atom.axis, size, atom.stride * step)])
        if atom.axis is not None:
            offsets[atom.axis] += start * atom.stride
    return View(view.ref, tuple(dims), tuple(offsets))


def indices(atoms: Sequence[Atom], strides: dict[int, int], offset: int = 0) -> np.ndarray:
    """Flat index of each element of a product of atoms; `strides` of the stored axes."""
    flat = np.array([offset])
    for atom in atoms:
        step = 0 if atom.axis is None else strides[atom.axis] * atom.stride
        flat = (flat[:, None] + np.arange(atom.size)[None, :] * step).ravel()
    return flat


def is_whole(view: View, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Per axis the stored axis it is, where the view is the tensor with its axes in some order."""
    if any(view.offsets) or len(view.dims) < len(shape):
        return None
    free = [axis for axis, n in enumerate(shape) if n == 1]
    order: list[int] = []
    for dim in view.dims:
        if not dim:
            if not free:
                return None
            order.append(free.pop(0))
        elif len(dim) == 1 and dim[0].axis is not None and dim[0].stride == 1:
            if dim[0].size != shape[dim[0].axis]:
                return None
            order.append(dim[0].axis)
        else:
            return None
    return tuple(order) if sorted(order) == list(range(len(shape))) else None
