"""Equations to nodes: everything that is independent of the frame is evaluated on the way."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.program.fold import elementwise
from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.tensors import NHWC, Tensors
from skipconv_jax.program.fold.views import Ref, View
from skipconv_jax.program.jaxprs import CONV, Place, bind, body, run
from skipconv_jax.program.sites import Site, Traced

# Makes a node of an equation and returns its result, or None where it doesn't take the case.
# An equation with several results has a list of them.
Rule = Callable[["Reader", Any, list[Any]], "View | list[View] | None"]


@dataclasses.dataclass(frozen=True)
class Known:
    """A constant; `origin` names the variable it comes from, `levels` its quantised form."""

    array: np.ndarray
    origin: str | None = None
    levels: g.Levels | None = None


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
    simple = _in_numpy(eqn, [v.array for v in values])
    if simple is not None:
        return [Known(simple, origin)]
    arrays = bind(eqn, [jnp.asarray(v.array) for v in values])
    return [Known(np.asarray(a), origin) for a in arrays]


_PLAIN: Mapping[str, Callable[..., np.ndarray]] = {
    "mul": np.multiply,
    "sub": np.subtract,
    "add": np.add,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "rsqrt": lambda a: np.float32(1) / np.sqrt(a),
}
"""XLA's `div` and `rsqrt` may be an ulp off; these are rounded correctly."""


def _in_numpy(eqn: Any, arrays: list[np.ndarray]) -> np.ndarray | None:
    """What NumPy computes, without compiling anything for a new shape."""
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    kinds = (np.float32,) if name in ("div", "rsqrt") else (np.float32, np.int32)
    same = all(a.dtype == out.dtype and a.dtype in kinds for a in arrays)
    if name in _PLAIN and same:
        # Infinities and NaN are values here as they are in XLA.
        with np.errstate(all="ignore"):
            return np.asarray(_PLAIN[name](*arrays))
    if name == "reshape" and len(arrays) == 1:
        return arrays[0].reshape(out.shape)
    whole = len(arrays) == 1 and arrays[0].dtype in (np.int8, np.uint8, np.int32)
    if name == "convert_element_type" and whole and out.dtype in (np.int32, np.float32):
        return arrays[0].astype(out.dtype)
    return None


@dataclasses.dataclass(frozen=True)
class Calls:
    """Named calls that are read as a whole.

    Attributes:
      rules: by the name of the `jit`.
      levels: the quantised form of a call on constants, or None.
    """

    rules: Mapping[str, Rule]
    levels: Callable[[Any, list[Known]], g.Levels | None]


class Reader(Tensors):
    """First pass: equations to nodes, everything that is independent of the frame evaluated.

    Attributes:
      variables: of the network.
      samples: tensors that are an element-wise function of another: per tensor, its values where
        that other is `elementwise.POINTS`.
    """

    def __init__(
        self,
        variables: Any,
        rules: Mapping[str, Rule],
        order: tuple[int, ...] = NHWC,
        calls: "Calls | None" = None,
    ) -> None:
        super().__init__(order)
        self.variables, self._rules = variables, rules
        self._calls = calls or Calls({}, lambda eqn, values: None)
        self.samples: dict[Ref, dict[Ref, np.ndarray]] = {}
        self._sites: Mapping[Place, Site] = {}
        self._place: Place = ()

    def read(self, fn: Callable[..., Any], x: Any) -> g.Graph:
        """The graph of `fn(variables, x)`."""
        traced = Traced.of(fn, self.variables, x)
        self._sites = traced.sites
        leaves = jax.tree.leaves(self.variables)
        arguments: list[Any] = [
            Known(np.asarray(a), n) for a, n in zip(leaves, traced.names, strict=True)
        ]
        inputs = [self.new(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(x)]
        frames = [self.arranged(ref) for ref in inputs]
        outputs = run(traced.program, [*arguments, *frames], self)
        final = [o.array if isinstance(o, Known) else self.array(o) for o in outputs]
        self._recognise()
        return g.Graph(self.nodes, inputs, final, traced.tree, self.avals)

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
            known = self._call(eqn, inner, values, place)
            return run(inner, values, self, place) if known is None else known
        self._place = place
        if all(isinstance(v, Known) for v in values):
            return evaluate(eqn, values)
        rule = self._rules.get(primitive)
        made = rule(self, eqn, values) if rule else None
        if made is None:
            return self._other(eqn, values)
        return made if isinstance(made, list) else [made]

    def _call(self, eqn: Any, inner: Any, values: list[Any], place: Place) -> list[Any] | None:
        """Results of a call that has a meaning as a whole."""
        name = eqn.params.get("name")
        if name not in self._calls.rules:
            return None
        if all(isinstance(v, Known) for v in values):
            (known,) = run(inner, values, self, place)
            return [dataclasses.replace(known, levels=self._calls.levels(eqn, values))]
        made = self._calls.rules[name](self, eqn, values)
        return None if made is None else [made]

    def _other(self, eqn: Any, values: list[Any]) -> list[Any]:
        outputs = tuple(self.new(v.aval.shape, v.aval.dtype) for v in eqn.outvars)
        arrays = [v if isinstance(v, Known) else self.array(v) for v in values]
        inputs = tuple(v for v in arrays if not isinstance(v, Known))
        operands = tuple(v.array if isinstance(v, Known) else v for v in arrays)
        name = self.site.name if eqn.primitive.name == CONV else ""
        self.nodes.append(g.OtherNode(inputs, outputs[0], eqn, operands, outputs, name))
        return [self.arranged(ref) for ref in outputs]

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
                np.full(elementwise.POINTS.shape, v.array.flat[0], v.array.dtype)
                if isinstance(v, Known)
                else tables[v.ref][base]
                for v in values
            ]
            simple = _in_numpy(eqn, operands)
            if simple is None:
                simple = np.asarray(bind(eqn, [jnp.asarray(a) for a in operands])[0])
            found[base] = simple
        if found:
            self.samples[out] = found

    def _recognise(self) -> None:
        """Chains of element-wise operations that are a known function become one node."""
        for at, node in enumerate(self.nodes):
            if isinstance(node, g.OtherNode):
                continue
            for base, values in sorted(self.samples.get(node.output, {}).items()):
                found = elementwise.recognise(values)
                if found is not None:
                    fn, params = found
                    self.nodes[at] = g.UnaryNode((base,), node.output, fn, params=params)
                    break
