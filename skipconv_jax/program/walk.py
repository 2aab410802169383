"""Walks a traced network and hands every convolution on the frame to a visitor.

A function `fn(variables, x, *args)` is traced to a jaxpr and evaluated again, equation by equation.
Each value remembers whether it depends on the frame and which variable it came from; with that, a
convolution gets a stable name and a verdict: skippable, or dense with the reason.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex

from skipconv_jax.ops.geometry import Conv
from skipconv_jax.program.jaxprs import (
    CALLS,
    CHECKPOINTS,
    CONV,
    aval,
    bind,
    channels_last,
    has_conv,
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


@dataclasses.dataclass(frozen=True)
class _Value:
    array: Any
    on_frame: bool = False
    origin: str | None = None
    # Holds the streams several times over, as concatenating frames along the batch does.
    repeated: bool = False


class Visitor:
    """Computes skippable convolutions; what it makes per site leaves through `made`."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def __call__(self, site: Site, x: jax.Array, kernel: jax.Array) -> jax.Array | None:
        """z `(N, *spatial, Co)` of x `(N, *spatial, Ci)`, kernel `(*window, Ci / groups, Co)`.

        None leaves the convolution as it is.
        """
        del site, x, kernel
        return None


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


def evaluate(
    fn: Callable[..., Any], variables: Any, x: Any, args: Sequence[Any], visit: Visitor
) -> tuple[Any, list[Site]]:
    """Evaluates `fn(variables, x, *args)`, each skippable convolution replaced by `visit`.

    Args:
      fn: pure function; `x` is a pytree whose arrays lead with the axis of B streams.
      variables: pytree of arrays.
      x: the frame.
      args: further arrays (dropout keys); they count as independent of the frame.
      visit: computes a skippable convolution in channels-last layout.

    Returns:
      What `fn` returns, and every convolution met, in the order of the trace.
    """
    streams = number_of_streams(x)
    closed, out_shape = jax.make_jaxpr(fn, return_shape=True)(variables, x, *args)
    named, _ = jax.tree_util.tree_flatten_with_path(variables)
    inputs = [_Value(leaf, False, leaf_name(path)) for path, leaf in named]
    inputs += [_Value(leaf, True) for leaf in jax.tree.leaves(x)]
    inputs += [_Value(leaf) for leaf in jax.tree.leaves(args)]
    walk = _Walk(visit, streams)
    outputs = walk.run(closed.jaxpr, [_Value(c) for c in closed.consts], inputs)
    return jax.tree.unflatten(jax.tree.structure(out_shape), [v.array for v in outputs]), walk.sites


def sites_of(
    fn: Callable[..., Any], variables: Any, x: Any, args: Sequence[Any] = ()
) -> list[Site]:
    """Every convolution of `fn(variables, x, *args)` in the order of the trace; shapes suffice."""
    sites: list[Site] = []

    def run(variables: Any, x: Any, args: Sequence[Any]) -> Any:
        y, found = evaluate(fn, variables, x, args, Visitor())
        sites.extend(found)
        return y

    jax.eval_shape(run, variables, x, tuple(args))
    return sites


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


class _Walk:
    """State of one evaluation: the sites met and how often each name was used."""

    def __init__(self, visit: Visitor, streams: int) -> None:
        self.visit = visit
        self.streams = streams
        self.sites: list[Site] = []
        self._uses: Counter[str] = Counter()
        self._taken: set[str] = set()

    def run(
        self, jaxpr: jex.Jaxpr, consts: Sequence[_Value], inputs: Sequence[_Value], note: str = ""
    ) -> list[_Value]:
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

        def read(atom: Any) -> _Value:
            return _Value(atom.val) if isinstance(atom, jex.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            outputs = self._equation(eqn, [read(v) for v in eqn.invars], note)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: jex.JaxprEqn, inputs: list[_Value], note: str) -> list[_Value]:
        primitive = eqn.primitive.name
        if primitive == CONV:
            return [self._convolution(eqn, inputs, note)]
        if has_conv(eqn):
            if primitive in CHECKPOINTS:
                return self._remat(eqn, inputs, note)
            if primitive in CALLS:
                if primitive.startswith("custom"):
                    note = f"{primitive}: differentiated through its body"
                body = eqn.params[CALLS[primitive]]
                return self.run(body.jaxpr, [_Value(c) for c in body.consts], inputs, note)
            self._hidden(eqn, inputs, primitive, 1)
        return _bind(eqn, inputs)

    def _remat(self, eqn: jex.JaxprEqn, inputs: list[_Value], note: str) -> list[_Value]:
        """Rebuilds `jax.checkpoint`; whatever the visitor makes inside must leave as an output."""
        marks: list[_Value] = []

        def body(*arrays: Any) -> tuple[list[Any], Any]:
            values = [dataclasses.replace(v, array=a) for v, a in zip(inputs, arrays, strict=True)]
            outer, self.visit.made = self.visit.made, {}
            outputs = self.run(eqn.params["jaxpr"], [], values, note)
            inner, self.visit.made = self.visit.made, outer
            marks.extend(outputs)
            return [v.array for v in outputs], inner

        checkpointed = jax.checkpoint(
            body, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
        )
        arrays, made = checkpointed(*(v.array for v in inputs))
        self.visit.made.update(made)
        return [dataclasses.replace(v, array=a) for v, a in zip(marks, arrays, strict=True)]

    def _convolution(self, eqn: jex.JaxprEqn, inputs: list[_Value], note: str) -> _Value:
        x, kernel = inputs
        site = self._site(eqn, kernel, 1, _why_dense(eqn, inputs, self.streams), note)
        self.sites.append(site)
        if site.dense_because:
            return _bind(eqn, inputs)[0]
        numbers, out = eqn.params["dimension_numbers"], aval(eqn.outvars[0])
        z = self.visit(
            site,
            x.array.transpose(channels_last(numbers.lhs_spec)),
            kernel.array.transpose(window_first(numbers.rhs_spec)),
        )
        if z is None:
            return _bind(eqn, inputs)[0]
        order = channels_last(numbers.out_spec)
        inverse = [order.index(axis) for axis in range(len(order))]
        return _Value(z.astype(out.dtype).transpose(inverse), True, repeated=x.repeated)

    def _hidden(self, eqn: jex.JaxprEqn, inputs: list[_Value], inside: str, times: int) -> None:
        """Records the convolutions in the bodies of an equation that is not entered."""
        for body in jex.jaxprs_in_params(eqn.params):
            # Constants, carries and operands end the argument list of every control-flow primitive.
            tail = inputs[len(inputs) - len(body.invars) :] if body.invars else []
            env = dict(zip(body.invars, tail, strict=len(tail) == len(body.invars)))
            loops = times * int(eqn.params.get("length", 1))
            for inner in body.eqns:
                at = [
                    env.get(v, _Value(None, True))
                    if not isinstance(v, jex.Literal)
                    else _Value(None)
                    for v in inner.invars
                ]
                if inner.primitive.name == CONV:
                    note = _COUNTED.get(eqn.primitive.name, "")
                    self.sites.append(self._site(inner, at[1], loops, f"inside `{inside}`", note))
                else:
                    self._hidden(inner, at, inside, loops)
                origin = _origin(inner, at)
                env.update({v: _Value(None, True, origin) for v in inner.outvars})

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

    def _site(
        self, eqn: jex.JaxprEqn, kernel: _Value, times: int, dense_because: str, note: str
    ) -> Site:
        name = self._name(kernel.origin or ("dynamic" if kernel.on_frame else "constant"))
        numbers, (x, w) = eqn.params["dimension_numbers"], (aval(v) for v in eqn.invars)
        in_shape = tuple(x.shape[a] for a in channels_last(numbers.lhs_spec))
        kernel_shape = tuple(w.shape[a] for a in window_first(numbers.rhs_spec))
        out = aval(eqn.outvars[0]).shape
        out_shape = tuple(out[a] for a in channels_last(numbers.out_spec))
        conv = None if dense_because else _geometry(eqn, in_shape, kernel_shape)
        # Zeros that input dilation inserts are no work: count from the input's side there.
        side = (
            out_shape
            if math.prod(eqn.params["lhs_dilation"]) == 1
            else in_shape[:-1] + out_shape[-1:]
        )
        macs = math.prod(side) * math.prod(kernel_shape[:-1]) * times
        images = out_shape[0] * times
        return Site(
            name=name,
            conv=conv,
            calls=max(images // self.streams, 1),
            macs=macs // self.streams,
            in_shape=in_shape[1:],
            out_shape=out_shape[1:],
            kernel_shape=kernel_shape,
            dtype=x.dtype,
            dense_because=dense_because,
            note=note,
        )


def _bind(eqn: jex.JaxprEqn, inputs: list[_Value]) -> list[_Value]:
    """The equation as it was."""
    arrays = bind(eqn, [v.array for v in inputs])
    on_frame, origin = any(v.on_frame for v in inputs), _origin(eqn, inputs)
    repeated = any(v.repeated for v in inputs) or (
        on_frame and eqn.primitive.name == "concatenate" and eqn.params["dimension"] == 0
    )
    return [_Value(a, on_frame, origin, repeated) for a in arrays]


def _origin(eqn: jex.JaxprEqn, inputs: Sequence[_Value]) -> str | None:
    """A value derived from variables alone is named after the largest of them."""
    if any(v.on_frame for v in inputs if v.array is not None):
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


def _geometry(eqn: jex.JaxprEqn, in_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> Conv:
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
