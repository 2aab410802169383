"""Every convolution of a traced network, named and judged once, for whoever reads the network.

Each value remembers whether it depends on the frame and which variable it came from; with that, a
convolution gets a stable name and a verdict: skippable, or dense with the reason.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex

from skipconv_jax.ops.geometry import Conv
from skipconv_jax.program.jaxprs import (
    CONV,
    Place,
    aval,
    bodies,
    body,
    channels_last,
    has_conv,
    hidden,
    run,
    trace,
    window_first,
)

# What the count of a convolution in a body that may run any number of times means.
_COUNTED = {"while": "counted for one turn of the loop", "cond": "every branch counted"}
_COLLECTIONS = ("params",)
_KERNEL_LEAVES = ("kernel", "weight", "w", "value", "raw_value")


@dataclasses.dataclass(frozen=True)
class Site:
    """One convolution of a traced network.

    Attributes:
      name: path of the kernel in the variables, plus `@k` for the k-th repeated use.
      conv: geometry for one stream; None where it is no plain convolution.
      calls: times it runs per frame and stream (a scan's length, images per stream).
      macs: multiply-accumulates per frame and stream.
      in_shape: of the input of one stream, `(*spatial, Ci)`.
      out_shape: of the output of one stream, `(*spatial, Co)`.
      kernel_shape: `(*window, Ci / groups, Co)`.
      dtype: of the input.
      dense_because: why it can't be skipped; empty where it can.
      note: anything else a user should know.
      layout: its dimension numbers, as the network has them.
    """

    name: str
    conv: Conv | None
    calls: int
    macs: int
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    dtype: Any
    dense_because: str = ""
    note: str = ""
    layout: Any = None


@dataclasses.dataclass(frozen=True)
class Traced:
    """A traced network: its program, and the convolutions in it.

    Attributes:
      program: arguments are the leaves of the variables, the frame and what else there is.
      tree: structure of what the network returns.
      sites: convolutions by the place of their equation, in the order of the trace.
      names: of the variables' leaves.
      streams: B.
    """

    program: jex.ClosedJaxpr
    tree: Any
    sites: Mapping[Place, Site]
    names: tuple[str, ...]
    streams: int

    @classmethod
    def of(
        cls, fn: Callable[..., Any], variables: Any, x: Any, args: Sequence[Any] = ()
    ) -> "Traced":
        """The network `fn(variables, x, *args)`; dead code, unused convolutions too, is left out.

        Args:
          fn: pure function; `x` is a pytree whose arrays lead with the axis of B streams.
          variables: pytree of arrays.
          x: the frame.
          args: further arrays (dropout keys); they count as independent of the frame.
        """
        streams = number_of_streams(x)
        program, tree = trace(fn, variables, x, *args)
        named, _ = jax.tree_util.tree_flatten_with_path(variables)
        names = tuple(leaf_name(path) for path, _ in named)
        inputs = [_Value(origin=name) for name in names]
        inputs += [_Value(on_frame=True) for _ in jax.tree.leaves(x)]
        inputs += [_Value() for _ in jax.tree.leaves(args)]
        finder = _Finder(streams)
        run(program, inputs, finder)
        return cls(program, tree, finder.sites, names, streams)


def leaf_name(path: Sequence[Any]) -> str:
    """Name of a convolution from the path of its kernel: collection and final leaf dropped."""
    keys = [str(_key(entry)) for entry in path]
    if len(keys) > 1 and keys[0] in _COLLECTIONS:
        keys = keys[1:]
    while len(keys) > 1 and keys[-1] in _KERNEL_LEAVES:
        keys = keys[:-1]
    return "/".join(keys) or "kernel"


def _key(entry: Any) -> Any:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def number_of_streams(x: Any) -> int:
    """B, the leading axis shared by every array of a frame.

    Raises:
      ValueError: no array, an array without axes, or leading axes that differ.
    """
    shapes = [leaf.shape for leaf in jax.tree.leaves(x)]
    leads = {shape[0] if shape else 0 for shape in shapes}
    if len(leads) != 1 or 0 in leads:
        raise ValueError(
            f"`x` (shapes {shapes}) must be an array or pytree whose arrays all lead with the "
            "axis of streams, B >= 1; use `x[None]` for one stream."
        )
    return int(leads.pop())


@dataclasses.dataclass(frozen=True)
class _Value:
    """What is known of a value; `unseen` ones are inside a loop or branch that isn't entered."""

    on_frame: bool = False
    origin: str | None = None
    # Holds the streams several times over, as concatenating frames along the batch does.
    repeated: bool = False
    unseen: bool = False


class _Finder:
    """Interprets a program as what is known of its values, and lists its convolutions."""

    def __init__(self, streams: int) -> None:
        self.sites: dict[Place, Site] = {}
        self._streams = streams
        self._uses: Counter[str] = Counter()
        self._taken: set[str] = set()
        self._note = ""
        self._inside: list[tuple[str, int]] = []

    def constant(self, value: Any, literal: bool) -> _Value:
        if self._inside and not literal:
            return _Value(on_frame=True, unseen=True)
        return _Value(unseen=bool(self._inside))

    def equation(self, eqn: jex.JaxprEqn, inputs: list[_Value], place: Place) -> list[_Value]:
        if self._inside:
            return self._unseen(eqn, inputs, place)
        primitive = eqn.primitive.name
        if primitive == CONV:
            why = _why_dense(eqn, inputs, self._streams)
            self._add(eqn, inputs[1], place, 1, why, self._note)
            if not why:
                return [_Value(True, repeated=inputs[0].repeated)]
        elif has_conv(eqn):
            inner = body(eqn)
            if inner is not None:
                outer, self._note = self._note, self._noted(primitive)
                outputs = run(inner, inputs, self, place)
                self._note = outer
                return outputs
            self._hide(eqn, inputs, place)
        return _after(eqn, inputs)

    def _noted(self, primitive: str) -> str:
        custom = primitive.startswith("custom")
        return f"{primitive}: differentiated through its body" if custom else self._note

    def _hide(self, eqn: jex.JaxprEqn, inputs: list[_Value], place: Place) -> None:
        """Lists the convolutions in the bodies of an equation that is not entered."""
        name = eqn.primitive.name
        times = self._inside[-1][1] if self._inside else 1
        self._inside.append((name, times * int(eqn.params.get("length", 1))))
        for number, inner in enumerate(bodies(eqn)):
            hidden(inner, inputs, self, (*place, number))
        self._inside.pop()

    def _unseen(self, eqn: jex.JaxprEqn, inputs: list[_Value], place: Place) -> list[_Value]:
        inside, times = self._inside[-1]
        if eqn.primitive.name == CONV:
            why, note = f"inside `{inside}`", _COUNTED.get(inside, "")
            self._add(eqn, inputs[1], place, times, why, note)
        else:
            self._hide(eqn, inputs, place)
        origin = _origin(eqn, inputs)
        return [_Value(True, origin, unseen=True) for _ in eqn.outvars]

    def _name(self, origin: str) -> str:
        """The kernel's name, with the number of the call from the second on."""
        while True:
            use = self._uses[origin]
            self._uses[origin] += 1
            name = f"{origin}@{use}" if use else origin
            # A module may itself be called `a@1`.
            if name not in self._taken:
                self._taken.add(name)
                return name

    def _add(
        self,
        eqn: jex.JaxprEqn,
        kernel: _Value,
        place: Place,
        times: int,
        dense_because: str,
        note: str,
    ) -> None:
        name = self._name(kernel.origin or ("dynamic" if kernel.on_frame else "constant"))
        self.sites[place] = _site(eqn, name, times, self._streams, dense_because, note)


def _site(
    eqn: jex.JaxprEqn, name: str, times: int, streams: int, dense_because: str, note: str
) -> Site:
    numbers, (x, w) = eqn.params["dimension_numbers"], (aval(v) for v in eqn.invars)
    in_shape = tuple(x.shape[a] for a in channels_last(numbers.lhs_spec))
    kernel_shape = tuple(w.shape[a] for a in window_first(numbers.rhs_spec))
    out = aval(eqn.outvars[0]).shape
    out_shape = tuple(out[a] for a in channels_last(numbers.out_spec))
    # Zeros that input dilation inserts are no work: count from the input's side there.
    plain = math.prod(eqn.params["lhs_dilation"]) == 1
    side = out_shape if plain else in_shape[:-1] + out_shape[-1:]
    macs = math.prod(side) * math.prod(kernel_shape[:-1]) * times
    return Site(
        name=name,
        conv=None if dense_because else geometry(eqn, in_shape, kernel_shape),
        calls=max(out_shape[0] * times // streams, 1),
        macs=macs // streams,
        in_shape=in_shape[1:],
        out_shape=out_shape[1:],
        kernel_shape=kernel_shape,
        dtype=x.dtype,
        dense_because=dense_because,
        note=note,
        layout=numbers,
    )


def _after(eqn: jex.JaxprEqn, inputs: list[_Value]) -> list[_Value]:
    on_frame, origin = any(v.on_frame for v in inputs), _origin(eqn, inputs)
    repeated = any(v.repeated for v in inputs) or (
        on_frame and eqn.primitive.name == "concatenate" and eqn.params["dimension"] == 0
    )
    return [_Value(on_frame, origin, repeated) for _ in eqn.outvars]


def _origin(eqn: jex.JaxprEqn, inputs: Sequence[_Value]) -> str | None:
    """A value derived from variables alone is named after the largest of them."""
    if any(v.on_frame for v in inputs if not v.unseen):
        return None
    sized = [
        (math.prod(aval(atom).shape), -i, v.origin)
        for i, (atom, v) in enumerate(zip(eqn.invars, inputs, strict=True))
        if v.origin
    ]
    return max(sized)[2] if sized else None


def _why_dense(eqn: jex.JaxprEqn, inputs: list[_Value], streams: int) -> str:
    x, kernel = inputs
    params = eqn.params
    x_aval = aval(eqn.invars[0])
    images = x_aval.shape[params["dimension_numbers"].lhs_spec[0]]
    if kernel.on_frame:
        return "its kernel depends on the frame"
    if not x.on_frame:
        return "its input does not depend on the frame"
    if not jax.numpy.issubdtype(x_aval.dtype, jax.numpy.floating):
        return f"its dtype is {x_aval.dtype}"
    if math.prod(params["lhs_dilation"]) != 1:
        return "it dilates its input (transposed convolution)"
    if params["batch_group_count"] != 1:
        return "it groups the batch"
    if images % streams:
        return f"its batch ({images}) is no multiple of the streams ({streams})"
    if images != streams > 1 and x.repeated:
        # State and resets take the images of a stream to follow one another.
        return "its batch holds all streams one after the other several times; stack on axis 1"
    if not 1 <= x_aval.ndim - 2 <= 3:
        return f"it has {x_aval.ndim - 2} spatial axes"
    return ""


def geometry(eqn: jex.JaxprEqn, in_shape: Sequence[int], kernel_shape: Sequence[int]) -> Conv:
    """Geometry of a convolution on `(B, *spatial, Ci)` by `(*window, Ci / groups, Co)`."""
    params = eqn.params
    return Conv.make(
        in_shape,
        kernel_shape,
        strides=params["window_strides"],
        padding=params["padding"],
        dilation=params["rhs_dilation"],
        groups=params["feature_group_count"],
        precision=params["precision"],
    )
