"""Which channels of a network only convolutions read: those that can be removed for good.

The inference trace is walked once. The output channels of a convolution are followed through what
treats channels apart (bias, batch norm, activations, pooling, resizing) until convolutions read
them. Channels that meet others (residual sums, concatenation), leave the network, or pass anything
the walk does not know, stay: nothing is pruned on a guess.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex

from skipconv_jax.compress.kernels import Path
from skipconv_jax.program.jaxprs import CALLS, CONV, Place, aval, run, trace

Tree = Any
_ELEMENTWISE = frozenset(
    (
        *("abs", "add", "add_any", "and", "ceil", "clamp", "convert_element_type", "copy", "cos"),
        *("div", "eq", "erf", "exp", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite"),
        *("le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or"),
        *("pow", "round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "stop_gradient"),
        *("sub", "tanh"),
    )
)
_WINDOWS = ("reduce_window_max", "reduce_window_min", "reduce_window_sum")
_REDUCTIONS = ("reduce_max", "reduce_min", "reduce_sum")


@dataclasses.dataclass(frozen=True)
class Group:
    """The output channels of one convolution, where only convolutions read them.

    Attributes:
      name: of the convolution that makes them.
      channels: how many there are.
      source: path of its kernel.
      vectors: paths of the `(C,)` variables that belong to them: bias, batch norm.
      readers: paths of the kernels that read them.
    """

    name: str
    channels: int
    source: Path
    vectors: tuple[Path, ...]
    readers: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class _Value:
    """What is known of a value.

    `source` set: channels of that kernel's output on `axis`. `leaves` set: made of these variables
    alone, channels on `axis` (None: none). `whole`: is one variable, unchanged. `uniform`: one
    constant everywhere.
    """

    source: Path | None = None
    axis: int | None = None
    leaves: frozenset[Path] = frozenset()
    whole: bool = False
    uniform: bool = False
    frame: bool = False


_UNIFORM = _Value(uniform=True)


def find_groups(fn: Callable[..., Any], variables: Tree, x: Any, *args: Any) -> tuple[Group, ...]:
    """Every group of channels that can be pruned, in the order of the trace.

    Args:
      fn: the network in inference, `fn(variables, x, *args)`.
      variables: nested dictionaries; shapes suffice.
      x: a frame, or its shape.
      *args: further arguments of `fn`.
    """
    program, _ = trace(fn, variables, x, *args)
    named = jax.tree_util.tree_leaves_with_path(variables)
    inputs, shapes = [], {}
    for entries, leaf in named:
        path = tuple(str(getattr(entry, "key", entry)) for entry in entries)
        shapes[path] = tuple(leaf.shape)
        axis = 0 if leaf.ndim == 1 else None
        inputs.append(_Value(axis=axis, leaves=frozenset([path]), whole=True))
    inputs += [_Value(frame=True) for _ in jax.tree.leaves(x)]
    inputs += [_Value() for _ in jax.tree.leaves(args)]
    walk = _Walk(shapes)
    outputs = run(program, inputs, walk)
    walk.lose(outputs)
    return walk.groups()


class _Walk:
    def __init__(self, shapes: dict[Path, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._made: Counter[Path] = Counter()
        self._read: Counter[Path] = Counter()
        self._channels: dict[Path, int] = {}
        self._vectors: dict[Path, dict[Path, None]] = {}
        self._readers: dict[Path, dict[Path, None]] = {}
        self._owner: dict[Path, Path] = {}
        self._lost: set[Path] = set()  # kernels whose output channels can't be followed
        self._spoiled: set[Path] = set()  # variables used in ways that fix their shape

    def constant(self, value: Any, literal: bool) -> _Value:
        """A number in an equation is the same everywhere; other constants are not looked at."""
        del value
        return _UNIFORM if literal else _Value()

    def lose(self, values: Sequence[_Value]) -> None:
        """Channels, or variables, that went where they can't be followed."""
        for value in values:
            if value.source:
                self._lost.add(value.source)
            self._spoiled.update(value.leaves)

    def groups(self) -> tuple[Group, ...]:
        """What is left once shared kernels and lost channels are taken out."""
        found = []
        for source, channels in self._channels.items():
            vectors = tuple(self._vectors.get(source, ()))
            readers = tuple(self._readers.get(source, ()))
            alone = self._made[source] == 1 and all(self._read[r] == 1 for r in readers)
            fixed = source in self._lost or self._spoiled.intersection([source, *vectors, *readers])
            if alone and readers and not fixed:
                name = "/".join(source[1:-1])
                found.append(Group(name, channels, source, vectors, readers))
        return tuple(found)

    def equation(self, eqn: jex.JaxprEqn, inputs: list[_Value], place: Place) -> list[_Value]:
        """What is known of an equation's results."""
        name = eqn.primitive.name
        if name in CALLS:
            return run(eqn.params[CALLS[name]], inputs, self, place)
        if name == CONV:
            return [self._convolution(eqn, *inputs)]
        if not any(v.source or v.leaves for v in inputs):
            uniform = all(v.uniform for v in inputs) and (
                name in _ELEMENTWISE or name == "broadcast_in_dim"
            )
            frame = any(v.frame for v in inputs)
            return [_Value(uniform=uniform, frame=frame) for _ in eqn.outvars]
        if name in _ELEMENTWISE:
            return [self._elementwise(eqn, inputs)]
        first, *rest = inputs
        axis = _moved(eqn, first.axis) if first.axis is not None and not rest else None
        if axis is None:
            self.lose(inputs)
            return [_Value(frame=any(v.frame for v in inputs)) for _ in eqn.outvars]
        return [dataclasses.replace(first, axis=axis, whole=False)]

    def _convolution(self, eqn: jex.JaxprEqn, x: _Value, kernel: _Value) -> _Value:
        numbers = eqn.params["dimension_numbers"]
        path = next(iter(kernel.leaves)) if len(kernel.leaves) == 1 and kernel.whole else None
        grouped = eqn.params["feature_group_count"] != 1 or eqn.params["batch_group_count"] != 1
        standard = numbers.rhs_spec[:2] == (len(numbers.rhs_spec) - 1, len(numbers.rhs_spec) - 2)
        # A transposed convolution is another module, whose features nobody resizes.
        transposed = math.prod(eqn.params["lhs_dilation"]) != 1
        if path is None or grouped or transposed or not standard:
            self.lose([x, kernel])
            return _Value(frame=True)
        if x.source and x.axis == numbers.lhs_spec[1]:
            self._readers.setdefault(x.source, {})[path] = None
            self._read[path] += 1
        else:
            self.lose([x])
        self._made[path] += 1
        self._channels[path] = self._shapes[path][-1]
        return _Value(source=path, axis=numbers.out_spec[1], frame=True)

    def _elementwise(self, eqn: jex.JaxprEqn, inputs: list[_Value]) -> _Value:
        sources = {(v.source, v.axis) for v in inputs if v.source}
        axes = {v.axis for v in inputs if v.leaves}
        frame = any(v.frame for v in inputs)
        if not sources:
            return self._of_variables(eqn, inputs, axes)
        (source, axis), *others = sources
        fits = not others and all(
            v.source or v.uniform or self._belongs(v, aval(atom).shape, source, axis)
            for v, atom in zip(inputs, eqn.invars, strict=True)
        )
        if not fits or source is None:
            self.lose(inputs)
            return _Value(frame=frame)
        return _Value(source=source, axis=axis, frame=frame)

    def _of_variables(
        self, eqn: jex.JaxprEqn, inputs: list[_Value], axes: set[int | None]
    ) -> _Value:
        leaves = frozenset().union(*(v.leaves for v in inputs))
        known = all(v.leaves or v.uniform for v in inputs)
        if len(axes) != 1 or not known or any(v.frame for v in inputs):
            self.lose(inputs)
            return _Value(frame=any(v.frame for v in inputs))
        cast = eqn.primitive.name in ("convert_element_type", "copy")
        whole = cast and inputs[0].whole
        return _Value(axis=next(iter(axes)), leaves=leaves, whole=whole)

    def _belongs(
        self, value: _Value, shape: tuple[int, ...], source: Path | None, axis: int | None
    ) -> bool:
        """Whether a value may act on the channels; `(C,)` variables are bound to them."""
        if source is None or axis is None:
            return False
        if not value.leaves:
            # The same for every channel: a map of attention, a mask.
            return not shape or shape[axis] == 1
        if value.axis != axis or math.prod(shape) != shape[axis]:
            return False
        channels = (self._channels[source],)
        for path in sorted(value.leaves):
            if self._shapes[path] != channels or self._owner.setdefault(path, source) != source:
                self._lost.add(self._owner.get(path, source))
                return False
            self._vectors.setdefault(source, {})[path] = None
        return True


def _moved(eqn: jex.JaxprEqn, axis: int) -> int | None:
    """Where an axis of the only operand ends up; None where it does not survive whole."""
    name, params = eqn.primitive.name, eqn.params
    before, after = aval(eqn.invars[0]).shape, aval(eqn.outvars[0]).shape
    if name == "broadcast_in_dim":
        to = params["broadcast_dimensions"][axis]
        return to if after[to] == before[axis] else None
    if name == "transpose":
        return params["permutation"].index(axis)
    if name == "reshape":
        tail = math.prod(before[axis + 1 :])
        fits = [
            i
            for i, n in enumerate(after)
            if n == before[axis] and math.prod(after[i + 1 :]) == tail
        ]
        return fits[-1] if fits else None
    if name in _WINDOWS:
        untouched = params["window_dimensions"][axis] == 1 and after[axis] == before[axis]
        return axis if untouched else None
    if name in _REDUCTIONS:
        axes = params["axes"]
        return None if axis in axes else axis - sum(a < axis for a in axes)
    if name == "squeeze":
        axes = params["dimensions"]
        return None if axis in axes else axis - sum(a < axis for a in axes)
    return None
