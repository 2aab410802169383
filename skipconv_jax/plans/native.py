"""Inference plans: a skipped network as programs of the native CPU engine.

`compile_plan(net, params, x)` folds the traced network (`skipconv_jax.program.fold`) and lowers it
to one custom call. Equations without a rule stay XLA between two calls; what they make re-enters
the next program through a comparison with its previous value. `plan.report()` lists them.

    plan = compile_plan(net, params, frame)
    state = plan.init_state()
    y, state, masks = plan.step(state, frame)
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.native import library
from skipconv_jax.native.builder import ProgramBuilder
from skipconv_jax.native.lower import (
    Lowering,
    gate_spec,
    scaled_inputs,
)
from skipconv_jax.native.operations import position_shape, why_not
from skipconv_jax.native.program import Program
from skipconv_jax.ops.gates import GateParams
from skipconv_jax.plans.folded import XlaPlan, fold_plan
from skipconv_jax.program import fold as g
from skipconv_jax.program.fold.execute import execute_node
from skipconv_jax.program.walk import number_of_streams
from skipconv_jax.transform import Rule, SkipNet

PlanState = tuple[jax.Array, ...]
Masks = tuple[jax.Array, ...]
Constants = tuple[tuple[jax.Array, jax.Array, jax.Array], ...]


@dataclasses.dataclass
class _Segment:
    """One program and the XLA nodes that run after it."""

    nodes: list[g.Node] = dataclasses.field(default_factory=list)
    after: list[g.Node] = dataclasses.field(default_factory=list)
    inputs: list[int] = dataclasses.field(default_factory=list)
    outputs: list[int] = dataclasses.field(default_factory=list)
    program: Program | None = None

    def finished(self) -> Program:
        """The program, once it is laid out."""
        if self.program is None:
            raise AssertionError("a segment without a program")
        return self.program


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A network ready for streaming; pure functions of state and frame.

    Attributes:
      graph: the folded network.
      before: XLA nodes that run before the first program.
      segments: programs with what follows each of them.
      layers: rule of every Skip-Convolution.
      streams: B of the example frame.
      keep_outputs: the state holds the outputs, and a frame writes where they changed.
    """

    graph: g.Graph
    before: tuple[g.Node, ...]
    segments: tuple[_Segment, ...]
    layers: Mapping[str, Rule]
    streams: int
    keep_outputs: bool = False

    @property
    def programs(self) -> list[Program]:
        """Programs in order."""
        return [s.finished() for s in self.segments]

    @functools.cached_property
    def constants(self) -> Constants:
        """Programs, weights and gate parameters; pass them to `apply` as arguments of a jit."""
        return tuple(p.constants for p in self.programs)

    def init_state(self, streams: int | None = None) -> PlanState:
        """State of fresh streams, one `(B, floats)` array per program; donate it.

        With `keep_outputs` the programs' outputs follow.
        """
        streams = streams or self.streams
        arenas = tuple(p.init_state(streams) for p in self.programs)
        shapes = [(streams, *self.graph.avals[ref].shape[1:]) for ref in self._kept]
        return *arenas, *(jnp.zeros(shape, jnp.float32) for shape in shapes)

    @functools.cached_property
    def _kept(self) -> list[int]:
        """Tensors that the state holds after the arenas."""
        return [ref for s in self.segments for ref in s.outputs] if self.keep_outputs else []

    def reset(self, state: PlanState, streams: jax.Array | None = None) -> PlanState:
        """State whose next frame computes everything for the given streams `(B,)` (default all)."""
        arenas, kept = self._parts(state)
        new = (p.reset(s, streams) for p, s in zip(self.programs, arenas, strict=True))
        return *new, *kept

    def _parts(self, state: PlanState) -> tuple[PlanState, PlanState]:
        """Arenas and kept outputs.

        Raises:
          ValueError: a state of another plan.
        """
        count = len(self.segments)
        if len(state) != count + len(self._kept):
            raise ValueError(
                f"`state` (={len(state)} arrays) must have {count + len(self._kept)}, as of this "
                "plan's `init_state`; `keep_outputs` is part of a plan."
            )
        return state[:count], state[count:]

    def apply(
        self, state: PlanState, x: Any, constants: Constants | None = None, *, threads: int = 0
    ) -> tuple[Any, PlanState, Masks]:
        """One frame: what the network returns, the new state, and the masks of each program.

        Pure, fit for `jit` and `scan`. Under a jit of your own pass `plan.constants` as an
        argument, or the weights become part of the compiled program. With `keep_outputs` read y
        inside that jit: returned from it, y is a copy of what the state holds.

        Args:
          state: from `init_state` or the previous frame.
          x: the frame, B streams.
          constants: `plan.constants`, or with gate parameters from `with_gates`.
          threads: of one call; 0 takes `native.num_threads()`.
        """
        others, state, masks = self._advance(state, x, constants, threads=threads)
        return self._returned(others, state), state, masks

    def _advance(
        self, state: PlanState, x: Any, constants: Constants | None = None, *, threads: int = 0
    ) -> tuple[dict[int, Any], PlanState, Masks]:
        """`apply` whose outputs are by tensor, without those that the new state holds."""
        values: dict[int, Any] = dict(zip(self.graph.inputs, jax.tree.leaves(x), strict=True))
        self._execute(self.before, values)
        new, masks = [], []
        arenas, kept = self._parts(state)
        held = dict(zip(self._kept, kept, strict=True))
        for segment, arena, const in zip(
            self.segments, arenas, constants or self.constants, strict=True
        ):
            frames = [self._as_positions(values[r], r) for r in segment.inputs]
            last = [held[r] for r in segment.outputs if r in held]
            outputs, arena, fired = segment.finished().apply(
                const, arena, *frames, kept=last, threads=threads
            )
            for ref, value in zip(segment.outputs, outputs, strict=True):
                shape = (-1, *self.graph.avals[ref].shape[1:])
                # XLA copies kept outputs that it has to reshape.
                values[ref] = value if ref in held else value.reshape(shape)
            self._execute(segment.after, values)
            new.append(arena)
            masks.append(fired)
        others = {r: values[r] for r in self.graph.outputs if isinstance(r, int) and r not in held}
        return others, (*new, *(values[r] for r in held)), tuple(masks)

    def _returned(self, others: Mapping[int, Any], state: PlanState) -> Any:
        """What the network returns, from `_advance`'s tensors and the state."""
        values = {**others, **dict(zip(self._kept, self._parts(state)[1], strict=True))}
        leaves = [values[o] if isinstance(o, int) else o for o in self.graph.outputs]
        return jax.tree.unflatten(self.graph.tree, leaves)

    @functools.cached_property
    def _jitted(self) -> Any:
        return jax.jit(self._advance, donate_argnums=0, static_argnames="threads")

    def step(
        self, state: PlanState, x: Any, constants: Constants | None = None, *, threads: int = 0
    ) -> tuple[Any, PlanState, Masks]:
        """`apply`, compiled once, with the state updated in place (the old one is gone).

        With `keep_outputs` y is gone at the next step too: copy what has to last.
        """
        others, state, masks = self._jitted(state, x, constants or self.constants, threads=threads)
        return self._returned(others, state), state, masks

    def fired(self, masks: Masks) -> dict[str, jax.Array]:
        """Masks by convolution, each `(B, nh, nw)`, of the Skip-Convolutions."""
        named: dict[str, jax.Array] = {}
        for program, mask in zip(self.programs, masks, strict=True):
            named.update(program.fired(mask))
        return {name: mask for name, mask in named.items() if name in self.layers}

    def with_gates(self, gates: Mapping[str, GateParams]) -> Constants:
        """`constants` with other gate parameters (thresholds, gate kernels); nothing recompiles."""
        convs = {n.name: n for n in self.graph.nodes if isinstance(n, g.ConvNode)}
        result = []
        for program, (words, weights, packed) in zip(self.programs, self.constants, strict=True):
            values = np.array(packed)
            for name, slot in program.masks.items():
                if name not in self.layers or slot.gate.kind == "always":
                    continue
                gate = gate_spec(convs[name], self.layers[name].gate, gates[name])
                new = slot.words(np.asarray(gate.params))
                values[slot.gate_offset : slot.gate_offset + new.size] = new
            result.append((words, weights, jnp.asarray(values)))
        return tuple(result)

    def state_bytes(self) -> int:
        """Bytes of state of one stream, kept outputs included."""
        kept = sum(math.prod(self.graph.avals[ref].shape[1:]) for ref in self._kept)
        return 4 * (sum(p.state_size for p in self.programs) + kept)

    def report(self) -> str:
        """What runs where: programs, and every operation left to XLA with the reason."""
        native = sum(len(s.nodes) for s in self.segments)
        lines = [
            f"{native} operations in {len(self.segments)} native call(s), "
            f"{self.state_bytes() / 1e6:.1f} MB of state per stream"
        ]
        others = [*self.before, *(n for s in self.segments for n in s.after)]
        lines += [f"XLA: {why_not(n, self.graph.avals)} (tensor {n.output})" for n in others]
        return "\n".join(lines)

    def _as_positions(self, value: jax.Array, ref: int) -> jax.Array:
        shape = position_shape(self.graph.avals[ref])
        return value.reshape((-1, *(shape or ())))

    def _execute(self, nodes: Sequence[g.Node], values: dict[int, Any]) -> None:
        for node in nodes:
            shape = self.graph.avals[node.output].shape
            made = execute_node(node, [values[r] for r in node.inputs], shape)
            refs = node.outputs if isinstance(node, g.OtherNode) else (node.output,)
            values.update(zip(refs, made, strict=True))


def compile_plan(
    net: SkipNet, params: Any, x: Any, *, winograd: bool = True, keep_outputs: bool = False
) -> Plan | XlaPlan:
    """Folds a skipped network with concrete parameters into a plan for frames like x.

    On a GPU or TPU the plan is that of `skipconv_jax.plans.folded.fold_plan`, which runs the
    platform's kernels. Where a CPU has no native engine it warns in one line and the plan runs
    `net.apply`.

    Args:
      net: from `skip`.
      params: `{'model': variables, 'gates': {name: parameters}}`, concrete.
      x: a frame of B streams; only shapes are read.
      winograd: F(2x2, 3x3) for 3x3 convolutions of stride 1; errors stay near 1e-6 relative.
      keep_outputs: keep the outputs in the state and write them where they changed, instead of all
        of them into new memory. For large outputs that are read before the next frame; a native
        plan only, others do as before.

    Raises:
      ValueError: a gate or policy the engine does not have, or a Skip-Convolution it can't take.
    """
    if jax.default_backend() != "cpu":
        return fold_plan(net, params, x)
    if not library.available():
        warnings.warn(library.status(), RuntimeWarning, stacklevel=2)
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), x)
        return XlaPlan(net, params, shapes)
    layers = {name: rule for name, (_, rule) in net.layers(params["model"], x).items()}
    graph = g.build(net.fn, params["model"], x)
    _check_complete(graph, layers)
    before, segments = _partition(graph)
    for segment in segments:
        _fill(segment, graph, layers, params["gates"], winograd)
    return Plan(graph, tuple(before), tuple(segments), layers, number_of_streams(x), keep_outputs)


def _check_complete(graph: g.Graph, layers: Mapping[str, Rule]) -> None:
    native = {
        n.name for n in graph.nodes if isinstance(n, g.ConvNode) and not why_not(n, graph.avals)
    }
    missing = sorted(set(layers) - native)
    if missing:
        raise ValueError(
            f"`net` must have Skip-Convolutions the engine can run; it can't run {missing}: use "
            "`net.apply`, or a rule (pattern, None) that leaves them dense."
        )


def _partition(graph: g.Graph) -> tuple[list[g.Node], list[_Segment]]:
    """Each native node into the first program that can hold it, XLA nodes between them."""
    program = dict.fromkeys(graph.inputs, 0)  # first program that may read a tensor
    done = dict.fromkeys(graph.inputs, -1)  # program after which its value exists
    inside: dict[int, int] = {}  # program that makes it
    before: list[g.Node] = []
    segments: list[_Segment] = []
    for node in graph.nodes:
        if why_not(node, graph.avals):
            time = max((done[r] for r in node.inputs), default=-1)
            (before if time < 0 else segments[time].after).append(node)
            refs = node.outputs if isinstance(node, g.OtherNode) else (node.output,)
            for ref in refs:
                program[ref], done[ref] = time + 1, time
            continue
        at = max(program[r] for r in node.inputs)
        while len(segments) <= at:
            segments.append(_Segment())
        segments[at].nodes.append(node)
        program[node.output] = done[node.output] = inside[node.output] = at
    _connect(graph, segments, inside)
    return before, segments


def _connect(graph: g.Graph, segments: list[_Segment], inside: Mapping[int, int]) -> None:
    """Which tensors enter and leave each program."""
    wanted: list[int] = [r for r in graph.outputs if isinstance(r, int)]
    wanted += [r for n in graph.nodes if why_not(n, graph.avals) for r in n.inputs]
    for at, segment in enumerate(segments):
        read = dict.fromkeys(r for n in segment.nodes for r in n.inputs)
        segment.inputs = [r for r in read if inside.get(r) != at]
        wanted += [r for r in segment.inputs if r in inside]
    for ref in dict.fromkeys(wanted):
        if ref in inside:
            segments[inside[ref]].outputs.append(ref)


def _fill(
    segment: _Segment,
    graph: g.Graph,
    layers: Mapping[str, Rule],
    gates: Mapping[str, GateParams],
    winograd: bool,
) -> None:
    scaled = scaled_inputs(graph, segment.nodes)
    builder = ProgramBuilder(winograd=winograd)
    lowering = Lowering(builder, graph.avals, layers, gates, scaled=scaled)
    for ref in segment.inputs:
        lowering.input(ref, [n for n in segment.nodes if ref in n.inputs])
    for node in segment.nodes:
        lowering.node(node)
    for ref in segment.outputs:
        lowering.output(ref)
    segment.program = lowering.builder.finish()
