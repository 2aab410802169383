"""What every plan can do, on whatever engine: pure functions of a state and a frame.

plan = compile_plan(net, params, frame)
state = plan.init_state()
y, state, masks = plan.step(state, frame)
spent = macs.spent_total(plan.table, plan.fired(masks))
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from skipconv_jax import macs
from skipconv_jax.ops.gates import GateParams
from skipconv_jax.program import fold as g
from skipconv_jax.program.walk import number_of_streams

# Of a plan's own making: a pytree of arrays.
State = Any
Masks = Any
Constants = Any


class FirstLayer(Protocol):
    """The first Skip-Convolution looked at ahead of a frame, for reset policies."""

    def init(self, streams: int) -> Any:
        """What it has to remember between frames."""
        ...

    def firing(self, memory: Any, state: State, x: Any, constants: Constants) -> jax.Array:
        """Share of its blocks that would fire on frame x, `(B,)`; `state` is the plan's."""
        ...

    def after(self, memory: Any, x: Any, reset: jax.Array) -> Any:
        """Memory after frame x, before which the streams `reset` `(B,)` started anew."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Plan(abc.ABC):
    """A skipped network ready for streaming on one engine. Made by `compile_plan`.

    Attributes:
      table: its convolutions and what they cost; those whose results nobody uses are left out.
      frame: shapes and dtypes of a frame of B streams; other numbers of streams run as well.
      why: why this engine runs it, where there was a choice.
    """

    table: macs.Table
    frame: Any
    why: str

    engine: ClassVar[str] = ""
    # Whether `sampled` can look at the outputs of single convolutions.
    looks_inside: ClassVar[bool] = False

    @property
    def streams(self) -> int:
        """B of the example frame."""
        return number_of_streams(self.frame)

    @property
    @abc.abstractmethod
    def constants(self) -> Constants:
        """Weights and gate parameters; pass them to `apply` as arguments of a jit of your own."""

    @abc.abstractmethod
    def init_state(self, streams: int | None = None) -> State:
        """State of fresh streams, by default as many as the example frame has; donate it."""

    @abc.abstractmethod
    def reset(self, state: State, streams: jax.Array | None = None) -> State:
        """State whose next frame computes everything for the given streams `(B,)` (default all)."""

    @abc.abstractmethod
    def fresh(self, state: State) -> jax.Array:
        """Streams whose next frame computes everything, `(B,)` bool."""

    @abc.abstractmethod
    def apply(
        self, state: State, x: Any, constants: Constants | None = None, *, threads: int = 0
    ) -> tuple[Any, State, Masks]:
        """One frame: what the network returns, the new state, and the masks (see `fired`).

        Pure, fit for `jit` and `scan`. Under a jit of your own pass `plan.constants` as an
        argument, or the weights become part of the compiled program.

        Args:
          state: from `init_state` or the previous frame.
          x: the frame, B streams.
          constants: `plan.constants`, or with gate parameters from `with_gates`.
          threads: of the native engine for this call; 0 takes `native.num_threads()`. XLA has its
            own.

        Raises:
          ValueError: a frame of another shape, layout or dtype, or the state of another plan.
        """

    @abc.abstractmethod
    def fired(self, masks: Masks) -> dict[str, jax.Array]:
        """Masks by convolution, each `(B, nh, nw)`, of the Skip-Convolutions."""

    @abc.abstractmethod
    def with_gates(self, gates: Mapping[str, GateParams]) -> Constants:
        """`constants` with other gate parameters (thresholds, gate kernels); nothing recompiles."""

    @abc.abstractmethod
    def report(self) -> str:
        """What runs where and why, in a few lines."""

    @abc.abstractmethod
    def first_layer(self) -> FirstLayer:
        """The first Skip-Convolution, for reset policies that ask how much of it would fire.

        Raises:
          ValueError: a network left dense.
        """

    def sampled(
        self, state: State, constants: Constants, x: Any, names: Sequence[str]
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Outputs of named convolutions after frame x, as streamed and as the dense network's.

        Raises:
          ValueError: an engine that keeps no convolution's own output.
        """
        raise ValueError(
            f"`layers` (={list(names)}) must be empty on the {self.engine} engine, which measures "
            "what the network returns; use engine='plain' to look at single convolutions."
        )

    @functools.cached_property
    def _jitted(self) -> Any:
        return jax.jit(self.apply, donate_argnums=0, static_argnames="threads")

    def step(
        self, state: State, x: Any, constants: Constants | None = None, *, threads: int = 0
    ) -> tuple[Any, State, Masks]:
        """`apply`, compiled once, with the state updated in place (the old one is gone)."""
        constants = self.constants if constants is None else constants
        result: tuple[Any, State, Masks] = self._jitted(state, x, constants, threads=threads)
        return result

    def state_bytes(self) -> int:
        """Bytes of state of one stream."""
        shapes = jax.tree.leaves(self._state_shapes)
        return sum(a.size * a.dtype.itemsize for a in shapes) // self.streams

    @functools.cached_property
    def _state_shapes(self) -> Any:
        return jax.eval_shape(self.init_state)

    def check(self, state: State, x: Any) -> None:
        """Refuses what was not made for this plan; costs nothing once a step is compiled.

        Raises:
          ValueError: names the argument, what it is and what it must be.
        """
        self._check_frame(x)
        streams = number_of_streams(x)
        want, got = self._state_shapes, state
        alike = _structure(want) == _structure(got) and all(
            jnp.shape(b) == _resized(a.shape, self.streams, streams)
            for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True)
        )
        if not alike:
            raise ValueError(
                f"`state` (={_short(got)}) must be this plan's for {streams} stream(s), as of its "
                f"`init_state` (={_short(want)} for {self.streams}); it is another plan's or holds "
                "another number of streams."
            )

    def _check_frame(self, x: Any) -> None:
        wanted, given = jax.tree.leaves(self.frame), jax.tree.leaves(x)
        fits = _structure(self.frame) == _structure(x) and all(
            jnp.shape(a)[1:] == w.shape[1:] and jnp.ndim(a) == len(w.shape)
            for a, w in zip(given, wanted, strict=True)
        )
        if not fits:
            turned = [sorted(jnp.shape(a)[1:]) for a in given] == [
                sorted(w.shape[1:]) for w in wanted
            ]
            hint = "the axes are in another order: transpose it" if turned else "compile a new plan"
            raise ValueError(
                f"`x` (={_short(x)}) must be a frame like the plan's (={_short(self.frame)}), any "
                f"number of streams leading; {hint}."
            )
        for a, w in zip(given, wanted, strict=True):
            if jax.dtypes.canonicalize_dtype(a.dtype) != w.dtype:
                raise ValueError(
                    f"`x` (dtype {a.dtype}) must have the dtype of the plan's frame (={w.dtype}); "
                    "convert it."
                )


def _structure(tree: Any) -> Any:
    return jax.tree.structure(tree)


def _resized(shape: tuple[int, ...], made_for: int, streams: int) -> tuple[int, ...]:
    return (shape[0] // made_for * streams, *shape[1:]) if shape else ()


def unused(table: macs.Table, graph: g.Graph) -> set[str]:
    """Skip-Convolutions that folding dropped because nobody uses their results."""
    kinds = g.ConvNode | g.QConvNode | g.OtherNode
    read = {n.name for n in graph.nodes if isinstance(n, kinds)}
    return {row.name for row in table.skipped()} - read


PRECISIONS = ("int8", "float32")


def check_quantised(graph: g.Graph, precision: str | None) -> None:
    """Refuses 'int8' of a network that has no quantised convolution.

    Raises:
      ValueError: says what to do.
    """
    if precision == "int8" and not any(isinstance(n, g.QConvNode) for n in graph.nodes):
        raise ValueError(
            "`precision` (='int8') needs a quantised network, and this one has no convolution of "
            "int8: quantise it with `skipconv_jax.quantize`, or load a quantised ONNX file."
        )


def shapes_of(tree: Any) -> Any:
    """Shapes and dtypes of a tree of arrays."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def _short(tree: Any) -> str:
    """Shapes and dtypes, of at most three arrays."""
    leaves = jax.tree.leaves(tree)
    shown = [f"{jnp.result_type(a)}[{','.join(map(str, jnp.shape(a)))}]" for a in leaves[:3]]
    return ", ".join(shown) + (f" and {len(leaves) - 3} more" if len(leaves) > 3 else "")
