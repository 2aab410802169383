"""Equations to nodes: everything that is independent of the frame is evaluated on the way."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from skipconv_jax.program.fold.nodes import Graph, Node, OtherNode, Ref
from skipconv_jax.program.jaxprs import CALLS, CHECKPOINTS, CONV, bind
from skipconv_jax.program.walk import leaf_name

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
        self._uses: Counter[str] = Counter()

    def read(self, fn: Callable[..., Any], x: Any) -> Graph:
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(self.variables, x)
        named, _ = jax.tree_util.tree_flatten_with_path(self.variables)
        arguments: list[Any] = []
        for path, leaf in named:
            array = np.asarray(leaf)
            arguments.append(Known(array, leaf_name(path)))
        inputs = [self.new(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(x)]
        consts = [Known(np.asarray(c)) for c in closed.consts]
        outputs = self._run(closed.jaxpr, consts, [*arguments, *inputs])
        final = [o.array if isinstance(o, Known) else o for o in outputs]
        return Graph(self.nodes, inputs, final, jax.tree.structure(shape), self.avals)

    def new(self, shape: Sequence[int], dtype: Any) -> Ref:
        ref = len(self.avals)
        self.avals[ref] = jax.ShapeDtypeStruct(tuple(shape), dtype)
        return ref

    def _run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

        def look(atom: Any) -> Any:
            return Known(np.asarray(atom.val)) if isinstance(atom, jex.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            values = [look(v) for v in eqn.invars]
            env.update(zip(eqn.outvars, self._equation(eqn, values), strict=True))
        return [look(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, values: list[Any]) -> list[Any]:
        primitive = eqn.primitive.name
        body = eqn.params.get(CALLS[primitive]) if primitive in CALLS else None
        if body is not None:
            return self._run(body.jaxpr, [Known(np.asarray(c)) for c in body.consts], values)
        if primitive in CHECKPOINTS:
            return self._run(eqn.params["jaxpr"], [], values)
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
            name = self.site_name(values[1])
        self.nodes.append(OtherNode(inputs, outputs[0], eqn, operands, outputs, name))
        return list(outputs)

    def add(self, eqn: Any, make: Callable[[Ref], Node]) -> Ref:
        """A node whose output has the equation's shape."""
        aval = eqn.outvars[0].aval
        ref = self.new(aval.shape, aval.dtype)
        self.nodes.append(make(ref))
        return ref

    def site_name(self, kernel: Any) -> str:
        """Name of a convolution as `skip` gives it: kernel path, numbered when used again."""
        name = (kernel.origin if isinstance(kernel, Known) else None) or "constant"
        use = self._uses[name]
        self._uses[name] += 1
        return f"{name}@{use}" if use else name
