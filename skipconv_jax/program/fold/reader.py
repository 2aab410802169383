"""Equations to nodes: everything that is independent of the frame is evaluated on the way."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.program.fold import elementwise
from skipconv_jax.program.fold.nodes import (
    ChannelsNode,
    CropNode,
    DepthToSpaceNode,
    Graph,
    LayoutNode,
    Node,
    OtherNode,
    ReshapeNode,
    ResizeNode,
    SpaceToDepthNode,
    UnaryNode,
    UpsampleNode,
)
from skipconv_jax.program.fold.views import Atom, Dim, Ref, View, indices, is_whole, whole
from skipconv_jax.program.jaxprs import CONV, Place, bind, body, run
from skipconv_jax.program.sites import Site, Traced

# Makes a node of an equation and returns its result, or None where it doesn't take the case.
Rule = Callable[["Reader", Any, list[Any]], "View | None"]
NHWC, NCHW = (0, 1, 2, 3), (0, 2, 3, 1)


@dataclasses.dataclass(frozen=True)
class Known:
    """A constant; `origin` names the variable it comes from."""

    array: np.ndarray
    origin: str | None = None


def evaluate(eqn: Any, values: list[Any]) -> list[Any]:
    """The equation's results, constants."""
    sized = [(v.array.size, -i, v.origin) for i, v in enumerate(values) if v.origin]
    origin = max(sized)[2] if sized else None
    if eqn.primitive.name == "broadcast_in_dim" and len(values) == 1:
        # A view: constants broadcast to whole feature maps would fill the memory.
        shape, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
        expanded = [1] * len(shape)
        for size, at in zip(values[0].array.shape, dims, strict=True):
            expanded[at] = size
        return [Known(np.broadcast_to(values[0].array.reshape(expanded), shape), origin)]
    arrays = bind(eqn, [jnp.asarray(v.array) for v in values])
    return [Known(np.asarray(a), origin) for a in arrays]


class Reader:
    """First pass: equations to nodes, everything that is independent of the frame evaluated.

    Attributes:
      nodes: made so far.
      avals: shape and dtype of every stored tensor.
      order: axes of rank-4 arrays of the trace that are batch, rows, columns and channels where
        nothing else tells.
      samples: tensors that are an element-wise function of another: per tensor, its values where
        that other is `elementwise.POINTS`.
    """

    def __init__(
        self, variables: Any, rules: Mapping[str, Rule], order: tuple[int, ...] = NHWC
    ) -> None:
        self.variables, self._rules, self.order = variables, rules, order
        self.nodes: list[Node] = []
        self.avals: dict[Ref, jax.ShapeDtypeStruct] = {}
        self.samples: dict[Ref, dict[Ref, np.ndarray]] = {}
        self._makers: dict[Ref, Node] = {}
        self._written: dict[tuple[Any, ...], Ref] = {}
        self._sites: Mapping[Place, Site] = {}
        self._place: Place = ()

    def read(self, fn: Callable[..., Any], x: Any) -> Graph:
        """The graph of `fn(variables, x)`."""
        traced = Traced.of(fn, self.variables, x)
        self._sites = traced.sites
        leaves = jax.tree.leaves(self.variables)
        arguments: list[Any] = [
            Known(np.asarray(a), n) for a, n in zip(leaves, traced.names, strict=True)
        ]
        inputs = [self.new(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(x)]
        frames = [self._arranged(ref) for ref in inputs]
        outputs = run(traced.program, [*arguments, *frames], self)
        final = [o.array if isinstance(o, Known) else self.array(o) for o in outputs]
        self._recognise()
        return Graph(self.nodes, inputs, final, traced.tree, self.avals)

    # -- tensors -----------------------------------------------------------------------------------
    def new(self, shape: Sequence[int], dtype: Any) -> Ref:
        """A tensor that somebody is about to make."""
        ref = len(self.avals)
        self.avals[ref] = jax.ShapeDtypeStruct(tuple(shape), dtype)
        return ref

    def make(self, node: Callable[[Ref], Node], shape: Sequence[int], dtype: Any = None) -> Ref:
        """Adds a node whose tensor has this shape."""
        ref = self.new(shape, np.float32 if dtype is None else dtype)
        made = node(ref)
        self.nodes.append(made)
        self._makers[ref] = made
        return ref

    def maker(self, ref: Ref) -> Node | None:
        """What makes a tensor; None for a frame."""
        return self._makers.get(ref)

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Of a stored tensor."""
        return self.avals[ref].shape

    def _arranged(self, ref: Ref) -> View:
        """An array of the trace, stored channels last where it is a map."""
        shape = self.shape(ref)
        view = whole(ref, shape)
        if len(shape) != 4 or self.order == NHWC:
            return view
        stored = [shape[axis] for axis in self.order]
        moved = view.transpose(self.order)
        ref = self.make(lambda out: LayoutNode((ref,), out, moved), stored, self.avals[ref].dtype)
        return whole(ref, stored, [self.order.index(axis) for axis in range(4)])

    # -- views -------------------------------------------------------------------------------------
    def array(self, view: View) -> Ref:
        """A tensor that is stored as the view looks."""
        shape, dtype = self.shape(view.ref), self.avals[view.ref].dtype
        if is_whole(view, shape) == tuple(range(len(shape))) and view.shape == shape:
            return view.ref
        key = (view.ref, view.dims, view.offsets, "array")
        if key not in self._written:
            maker = self._makers.get(view.ref)
            order = is_whole(view, shape)
            if isinstance(maker, LayoutNode) and order is not None:
                # Back to what it was before it was arranged.
                back = tuple(self.order.index(axis) for axis in range(4))
                if order == back and view.shape == self.shape(maker.inputs[0]):
                    return maker.inputs[0]
            self._written[key] = self.make(
                lambda out: LayoutNode((view.ref,), out, view), view.shape, dtype
            )
        return self._written[key]

    def roles(self, *views: View) -> tuple[int, ...]:
        """Which axes of arrays of one shape are batch, rows, columns and channels."""
        for view in views:
            shape = self.shape(view.ref)
            order = is_whole(view, shape) if len(shape) == len(view.dims) == 4 else None
            if order is not None:
                return tuple(order.index(axis) for axis in range(4))
        return self.order

    def map(self, view: View, roles: Sequence[int]) -> Ref:
        """A tensor `(B, H, W, C)`, where the view's axes are those in the order of `roles`."""
        wanted = view.transpose(roles)
        if is_whole(wanted, self.shape(view.ref)) == (0, 1, 2, 3):
            return view.ref
        key = (wanted.ref, wanted.dims, wanted.offsets)
        if key not in self._written:
            made = _arrange(self, wanted)
            self._written[key] = self.array(wanted) if made is None else made
        return self._written[key]

    @property
    def site(self) -> Site:
        """The convolution that is being read, as `skip` names it."""
        return self._sites[self._place]

    # -- equations ---------------------------------------------------------------------------------
    def constant(self, value: Any, literal: bool) -> Known:
        """A constant of the program."""
        del literal
        return Known(np.asarray(value))

    def equation(self, eqn: Any, values: list[Any], place: Place) -> list[Any]:
        """Results of an equation."""
        primitive = eqn.primitive.name
        inner = body(eqn)
        if inner is not None:
            return run(inner, values, self, place)
        self._place = place
        if all(isinstance(v, Known) for v in values):
            return evaluate(eqn, values)
        rule = self._rules.get(primitive)
        made = rule(self, eqn, values) if rule else None
        return [made] if made is not None else self._other(eqn, values)

    def _other(self, eqn: Any, values: list[Any]) -> list[Any]:
        outputs = tuple(self.new(v.aval.shape, v.aval.dtype) for v in eqn.outvars)
        arrays = [v if isinstance(v, Known) else self.array(v) for v in values]
        inputs = tuple(v for v in arrays if not isinstance(v, Known))
        operands = tuple(v.array if isinstance(v, Known) else v for v in arrays)
        name = self.site.name if eqn.primitive.name == CONV else ""
        self.nodes.append(OtherNode(inputs, outputs[0], eqn, operands, outputs, name))
        return [self._arranged(ref) for ref in outputs]

    # -- element-wise functions --------------------------------------------------------------------
    def sample(self, eqn: Any, values: Sequence[Any], out: Ref) -> None:
        """Notes of which tensors an element-wise result is a function with scalar constants."""
        refs = {v.ref for v in values if not isinstance(v, Known)}
        scalars = [v.array for v in values if isinstance(v, Known)]
        if any(a.size != 1 and not (a == a.flat[0]).all() for a in scalars):
            return
        tables = {r: {**self.samples.get(r, {}), r: elementwise.POINTS} for r in refs}
        common = set.intersection(*(set(t) for t in tables.values()))
        found = {}
        for base in sorted(common)[-12:]:
            operands = [
                jnp.full(elementwise.POINTS.shape, v.array.flat[0], v.array.dtype)
                if isinstance(v, Known)
                else jnp.asarray(tables[v.ref][base])
                for v in values
            ]
            with np.errstate(all="ignore"):
                found[base] = np.asarray(bind(eqn, operands)[0])
        if found:
            self.samples[out] = found

    def _recognise(self) -> None:
        """Chains of element-wise operations that are a known function become one node."""
        for at, node in enumerate(self.nodes):
            if isinstance(node, OtherNode):
                continue
            for base, values in sorted(self.samples.get(node.output, {}).items()):
                found = elementwise.recognise(values)
                if found is not None:
                    fn, params = found
                    self.nodes[at] = UnaryNode((base,), node.output, fn, params=params)
                    break


def _arrange(reader: Reader, view: View) -> Ref | None:
    """`Reader.map` in operations of the engine: crop, space to depth, channels, depth to space,
    upsampling; None where the view is no such chain."""
    ref, shape = view.ref, reader.shape(view.ref)
    if len(shape) == 2:
        return _arrange_vector(reader, view)
    if len(shape) != 4 or view.dims[0] != whole(ref, shape).dims[0] or view.offsets[0]:
        return None
    parts = [_spatial(view.dims[axis], axis) for axis in (1, 2)]
    if None in parts:
        return None
    inner = [a for a in view.dims[3] if a.axis in (1, 2)]
    if any(a.axis is None or a.axis == 0 for a in view.dims[3]):
        return None
    cropped, depth = _cropped(reader, view, [p[0] for p in parts if p], inner)
    if cropped is None:
        return None
    picked = _picked(reader, view, cropped, depth, [p[1] for p in parts if p])
    return None if picked is None else _repeated(reader, picked, [p[2] for p in parts if p])


def _spatial(dim: Dim, axis: int) -> tuple[Atom, Atom | None, int] | None:
    """An axis as stored positions, the channels it takes in, and how often each is repeated."""
    atoms = list(dim)
    own = atoms.pop(0) if atoms and atoms[0].axis == axis else Atom(axis, 1, 1)
    depth = atoms.pop(0) if atoms and atoms[0].axis == 3 else None
    factor = atoms.pop(0).size if atoms and atoms[0].axis is None else 1
    return None if atoms else (own, depth, factor)


def _cropped(
    reader: Reader, view: View, own: Sequence[Atom], inner: Sequence[Atom]
) -> tuple[Ref | None, int]:
    """The positions that are read, and the block that the channels take in."""
    ref, shape = view.ref, reader.shape(view.ref)
    starts, strides = view.offsets[1:3], tuple(a.stride for a in own)
    sizes = tuple(a.size for a in own)
    dtype = reader.avals[ref].dtype
    if inner:
        block = inner[0].size
        plain = {(a.axis, a.size, a.stride) for a in inner} == {(1, block, 1), (2, block, 1)}
        if not plain or any(starts) or strides != (block, block):
            return None, 1
        if sizes != (shape[1] // block, shape[2] // block):
            return None, 1
        deep = (shape[0], *sizes, shape[3] * block * block)
        return reader.make(lambda o: SpaceToDepthNode((ref,), o, block), deep, dtype), block
    if (starts, sizes) == ((0, 0), shape[1:3]) and strides == (1, 1):
        return ref, 1
    out = (shape[0], sizes[0], sizes[1], shape[3])
    key = (ref, starts, sizes, strides, "crop")
    if key not in reader._written:
        reader._written[key] = reader.make(
            lambda o: CropNode((ref,), o, starts, sizes, strides), out, dtype
        )
    return reader._written[key], 1


def _picked(
    reader: Reader, view: View, ref: Ref, block: int, depth: Sequence[Atom | None]
) -> Ref | None:
    """Channels in their order, those that become positions first."""
    channels = reader.shape(view.ref)[3]
    strides = {1: channels * block, 2: channels, 3: 1}
    blocks = [a for a in depth if a is not None]
    if blocks and (len(blocks) != 2 or blocks[0].size != blocks[1].size or block > 1):
        return None
    index = indices([*blocks, *view.dims[3]], strides, view.offsets[3])
    shape, dtype = reader.shape(ref), reader.avals[ref].dtype
    if len(index) != shape[3] or (index != np.arange(shape[3])).any():
        picked = tuple(int(i) for i in index)
        source = ref
        ref = reader.make(
            lambda o: ChannelsNode((source,), o, picked), (*shape[:3], len(index)), dtype
        )
    if blocks:
        size, inner = blocks[0].size, ref
        b, h, w, c = reader.shape(inner)
        out = (b, h * size, w * size, c // size**2)
        ref = reader.make(lambda o: DepthToSpaceNode((inner,), o, size), out, dtype)
    return ref


def _repeated(reader: Reader, ref: Ref, factors: Sequence[int]) -> Ref:
    if tuple(factors) == (1, 1):
        return ref
    b, h, w, c = reader.shape(ref)
    out, dtype = (b, h * factors[0], w * factors[1], c), reader.avals[ref].dtype
    if factors[0] == factors[1]:
        return reader.make(lambda o: UpsampleNode((ref,), o, factors[0]), out, dtype)
    taps = tuple(
        (np.repeat(np.arange(n), f)[:, None], np.ones((n * f, 1), np.float32))
        for n, f in zip((h, w), factors, strict=True)
    )
    return reader.make(lambda o: ResizeNode((ref,), o, taps), out, dtype)


def _arrange_vector(reader: Reader, view: View) -> Ref | None:
    """`(B, C)` as a map of one position, or that one repeated."""
    b, c = reader.shape(view.ref)
    full = whole(view.ref, (b, c))
    if view.dims[0] != full.dims[0] or view.dims[3] != full.dims[1] or any(view.offsets):
        return None
    if any(a.axis is not None for dim in view.dims[1:3] for a in dim):
        return None
    dtype = reader.avals[view.ref].dtype
    ref = reader.make(lambda o: ReshapeNode((view.ref,), o), (b, 1, 1, c), dtype)
    return _repeated(reader, ref, view.shape[1:3])
