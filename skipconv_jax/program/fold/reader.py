"""Equations to nodes: everything that is independent of the frame is evaluated on the way."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.program.fold.nodes import Graph, Node, OtherNode, Ref
from skipconv_jax.program.jaxprs import CONV, Place, bind, body, run
from skipconv_jax.program.sites import Site, Traced

# Makes a node of an equation and returns its tensor, or None where it doesn't take the case.
Rule = Callable[["Reader", Any, list[Any]], Ref | None]


@dataclasses.dataclass(frozen=True)
class Known:
    """A constant; `origin` names the variable it comes from."""

    array: np.ndarray
    origin: str | None = None


def evaluate(eqn: Any, values: list[Any]) -> list[Any]:
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


def per_channel(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """`()` or `(C,)` where a constant varies along the last axis alone, else None."""
    if array.ndim == 0:
        return array
    if array.ndim != len(shape):
        return None
    constant = [n == 1 or s == 0 for n, s in zip(array.shape, array.strides, strict=True)]
    first = array[(0,) * (array.ndim - 1)]
    if not all(constant[:-1]) and not (array == first).all():
        return None
    return first[0].reshape(()) if constant[-1] else first


class Reader:
    """First pass: equations to nodes, everything that is independent of the frame evaluated."""

    def __init__(self, variables: Any, rules: Mapping[str, Rule]) -> None:
        self.variables, self._rules = variables, rules
        self.nodes: list[Node] = []
        self.avals: dict[Ref, jax.ShapeDtypeStruct] = {}
        self.sites: Mapping[Place, Site] = {}
        self.place: Place = ()

    def read(self, fn: Callable[..., Any], x: Any) -> Graph:
        traced = Traced.of(fn, self.variables, x)
        self.sites = traced.sites
        leaves = jax.tree.leaves(self.variables)
        arguments: list[Any] = [
            Known(np.asarray(a), n) for a, n in zip(leaves, traced.names, strict=True)
        ]
        inputs = [self.new(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(x)]
        outputs = run(traced.program, [*arguments, *inputs], self)
        final = [o.array if isinstance(o, Known) else o for o in outputs]
        return Graph(self.nodes, inputs, final, traced.tree, self.avals)

    def constant(self, value: Any, literal: bool) -> Known:
        del literal
        return Known(np.asarray(value))

    def new(self, shape: Sequence[int], dtype: Any) -> Ref:
        ref = len(self.avals)
        self.avals[ref] = jax.ShapeDtypeStruct(tuple(shape), dtype)
        return ref

    def equation(self, eqn: Any, values: list[Any], place: Place) -> list[Any]:
        primitive = eqn.primitive.name
        inner = body(eqn)
        if inner is not None:
            return run(inner, values, self, place)
        self.place = place
        if all(isinstance(v, Known) for v in values):
            return evaluate(eqn, values)
        rule = self._rules.get(primitive)
        made = rule(self, eqn, values) if rule else None
        return [made] if made is not None else self._other(eqn, values)

    def _other(self, eqn: Any, values: list[Any]) -> list[Any]:
        outputs = tuple(self.new(v.aval.shape, v.aval.dtype) for v in eqn.outvars)
        inputs = tuple(v for v in values if not isinstance(v, Known))
        operands = tuple(v.array if isinstance(v, Known) else v for v in values)
        name = ""
        if eqn.primitive.name == CONV:
            name = self.site_name()
        self.nodes.append(OtherNode(inputs, outputs[0], eqn, operands, outputs, name))
        return list(outputs)

    def add(self, eqn: Any, make: Callable[[Ref], Node]) -> Ref:
        """A node whose output has the equation's shape."""
        aval = eqn.outvars[0].aval
        ref = self.new(aval.shape, aval.dtype)
        self.nodes.append(make(ref))
        return ref

    def site_name(self) -> str:
        """Name of the convolution that is being read, as `skip` gives it."""
        return self.sites[self.place].name
