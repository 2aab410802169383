"""The native plan: a skipped network as programs of the native CPU engine.

`native_plan(net, params, x)` folds the traced network (`skipconv_jax.program.fold`) and lowers it
to one custom call. Equations without a rule stay XLA between two calls; what they make re-enters
the next program through a comparison with its previous value. `plan.report()` lists them.
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax import macs
from skipconv_jax.native import library, lower_quantised, schema
from skipconv_jax.native.byte_builder import ByteBuilder
from skipconv_jax.native.byte_rewrites import bytes_inside
from skipconv_jax.native.layout import PURPOSES
from skipconv_jax.native.lower import (
    FEW,
    Lowering,
    gate_spec,
    scaled_inputs,
)
from skipconv_jax.native.operations import position_shape, why_not
from skipconv_jax.native.profiling import records
from skipconv_jax.native.program import Program
from skipconv_jax.ops import POLICIES, AlwaysGate, GumbelGate, InputNormGate, OutputNormGate
from skipconv_jax.ops.gates import GateParams
from skipconv_jax.plans.base import FirstLayer, Plan, check_quantised, shapes_of, unused
from skipconv_jax.plans.plain import first_name, once
from skipconv_jax.program import fold as g
from skipconv_jax.program.fold.execute import execute_node
from skipconv_jax.program.fold.views import is_whole
from skipconv_jax.program.walk import number_of_streams
from skipconv_jax.transform import Rule, SkipNet

_GATES = (AlwaysGate, GumbelGate, InputNormGate, OutputNormGate)
_CONVS = (g.ConvNode, g.QConvNode)
PlanState = tuple[jax.Array, ...]
Masks = tuple[jax.Array, ...]
Constants = tuple[tuple[jax.Array, jax.Array, jax.Array], ...]


class Unsupported(ValueError):
    """A Skip-Convolution the native engine can't run."""


class UnsupportedOnBytes(Unsupported):
    """One of a quantised network."""


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
class NativePlan(Plan):
    """A network ready for streaming; pure functions of state and frame.

    Attributes:
      graph: the folded network.
      before: XLA nodes that run before the first program.
      segments: programs with what follows each of them.
      layers: rule of every Skip-Convolution.
      gates: parameters of their gates, as they were compiled.
      keep_outputs: the state holds the outputs, and a frame writes where they changed.
      channels_first: frames that enter as `(B, C, H, W)`.
      leave_first: results that leave so.
    """

    graph: g.Graph
    before: tuple[g.Node, ...]
    segments: tuple[_Segment, ...]
    layers: Mapping[str, Rule]
    gates: Mapping[str, GateParams]
    keep_outputs: bool = False
    channels_first: frozenset[int] = frozenset()
    leave_first: frozenset[int] = frozenset()

    engine = "native"

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
        shapes = [(streams, *self.left(ref)) for ref in self._kept]
        return *arenas, *(jnp.zeros(shape, jnp.float32) for shape in shapes)

    def left(self, ref: int) -> tuple[int, ...]:
        """Shape of what leaves a program, of one stream."""
        shape = tuple(self.graph.avals[ref].shape[1:])
        return (shape[2], *shape[:2]) if ref in self.leave_first else shape

    @functools.cached_property
    def _kept(self) -> list[int]:
        """Tensors that the state holds after the arenas."""
        return [ref for s in self.segments for ref in s.outputs] if self.keep_outputs else []

    def reset(self, state: PlanState, streams: jax.Array | None = None) -> PlanState:
        """State whose next frame computes everything for the given streams `(B,)` (default all)."""
        arenas, kept = self._parts(state)
        new = (p.reset(s, streams) for p, s in zip(self.programs, arenas, strict=True))
        return *new, *kept

    def fresh(self, state: PlanState) -> jax.Array:
        """Streams whose next frame computes everything, `(B,)` bool."""
        first_name(self)
        return self.programs[0].fresh(state[0])

    def check(self, state: PlanState, x: Any) -> None:
        """Refuses what was not made for this plan; costs nothing once a step is compiled."""
        self._parts(state)
        super().check(state, x)

    def _parts(self, state: PlanState) -> tuple[PlanState, PlanState]:
        """Arenas and kept outputs.

        Raises:
          ValueError: a state of another plan.
        """
        count = len(self.segments)
        if not isinstance(state, tuple) or len(state) != count + len(self._kept):
            raise ValueError(
                f"`state` (={len(state)} arrays) must have {count + len(self._kept)}, as of this "
                "plan's `init_state`; `keep_outputs` is part of a plan."
            )
        return state[:count], state[count:]

    def apply(
        self, state: PlanState, x: Any, constants: Constants | None = None, *, threads: int = 0
    ) -> tuple[Any, PlanState, Masks]:
        """One frame: what the network returns, the new state, and the masks of each program.

        See `Plan.apply`. With `keep_outputs` read y inside the jit: returned from it, y is a copy
        of what the state holds.
        """
        others, state, masks = self._advance(state, x, constants, threads=threads)
        return self._returned(others, state), state, masks

    def _advance(
        self, state: PlanState, x: Any, constants: Constants | None = None, *, threads: int = 0
    ) -> tuple[dict[int, Any], PlanState, Masks]:
        """`apply` whose outputs are by tensor, without those that the new state holds."""
        self.check(state, x)
        values: dict[int, Any] = dict(zip(self.graph.inputs, jax.tree.leaves(x), strict=True))
        self._execute(self.before, values)
        new, masks = [], []
        arenas, kept = self._parts(state)
        held = dict(zip(self._kept, kept, strict=True))
        for segment, arena, const in zip(
            self.segments, arenas, self.constants if constants is None else constants, strict=True
        ):
            frames = [self._as_positions(values[r], r) for r in segment.inputs]
            last = [held[r] for r in segment.outputs if r in held]
            outputs, arena, fired = segment.finished().apply(
                const, arena, *frames, kept=last, threads=threads
            )
            for ref, value in zip(segment.outputs, outputs, strict=True):
                shape = (-1, *self.left(ref))
                # XLA copies kept outputs that it has to reshape.
                shaped = value if ref in held else value.reshape(shape)
                # Bytes cross as whole real numbers.
                values[ref] = shaped.astype(self.graph.avals[ref].dtype)
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
        constants = self.constants if constants is None else constants
        others, state, masks = self._jitted(state, x, constants, threads=threads)
        return self._returned(others, state), state, masks

    def fired(self, masks: Masks) -> dict[str, jax.Array]:
        """Masks by convolution, each `(B, nh, nw)`, of the Skip-Convolutions."""
        named: dict[str, jax.Array] = {}
        for program, mask in zip(self.programs, masks, strict=True):
            named.update(program.fired(mask))
        return {name: mask for name, mask in named.items() if name in self.layers}

    def with_gates(self, gates: Mapping[str, GateParams]) -> Constants:
        """`constants` with other gate parameters (thresholds, gate kernels); nothing recompiles."""
        convs = {n.name: n for n in self.graph.nodes if isinstance(n, _CONVS)}
        result = []
        for program, (words, weights, packed) in zip(self.programs, self.constants, strict=True):
            values = np.array(packed)
            for name, slot in program.masks.items():
                if name not in self.layers or slot.gate.kind == "always":
                    continue
                node, rule = convs[name], self.layers[name]
                if isinstance(node, g.QConvNode):
                    gate = lower_quantised.byte_gate(node, rule.gate, gates[name])
                else:
                    gate = gate_spec(node, rule.gate, gates[name])
                new = slot.words(np.asarray(gate.params))
                values[slot.gate_offset : slot.gate_offset + new.size] = new
            result.append((words, weights, jnp.asarray(values)))
        return tuple(result)

    def state_bytes(self) -> int:
        """Bytes of state of one stream, kept outputs included."""
        kept = sum(math.prod(self.graph.avals[ref].shape[1:]) for ref in self._kept)
        return 4 * (sum(p.state_size for p in self.programs) + kept)

    def report(self) -> str:
        """What runs where, what state holds and why, and every operation left to XLA."""
        native = sum(len(s.nodes) for s in self.segments)
        lines = [
            f"{native} operations in {len(self.segments)} native call(s), "
            f"{self.state_bytes() / 1e6:.1f} MB of state per stream"
        ]
        integers = sum(isinstance(n, g.QConvNode) for n in self.graph.nodes)
        lines += [f"{integers} convolutions of int8, exact in int32"] if integers else []
        links = sum(op["head"] >= 0 for p in self.programs for op in records(p)[1])
        lines += [f"{links} 1x1 layers computed with what makes their input"] if links else []
        for purpose, why in PURPOSES.items():
            floats = sum(p.kept.get(purpose, 0) for p in self.programs)
            lines += [f"state: {4 * floats / 1e6:.1f} MB {purpose}: {why}"] if floats else []
        others = [*self.before, *(n for s in self.segments for n in s.after)]
        lines += [
            f"XLA: {why_not(n, self.graph.avals) or 'goes on with a frame'} (tensor {n.output})"
            for n in others
        ]
        return "\n".join(lines)

    def first_layer(self) -> FirstLayer:
        """The first Skip-Convolution, as a program of its own that follows the frames alongside."""
        name = first_name(self)
        (conv,) = (n for n in self.graph.nodes if isinstance(n, _CONVS) and n.name == name)
        return _First(self._until(conv), name)

    def _until(self, last: g.ConvNode | g.QConvNode) -> "NativePlan":
        """The plan of one tensor: what the network needs to make it, and nothing behind it."""
        wanted, kept = {last.output}, []
        for node in reversed(self.graph.nodes):
            refs = node.outputs if isinstance(node, g.OtherNode) else (node.output,)
            if wanted & set(refs):
                wanted |= set(node.inputs)
                kept.append(node)
        graph = dataclasses.replace(
            self.graph, nodes=kept[::-1], outputs=[last.output], tree=jax.tree.structure(0)
        )
        table = self.table.without({r.name for r in self.table.rows} - {last.name})
        return _compiled(
            graph,
            table,
            self.frame,
            self.layers,
            self.gates,
            channels_first=self.channels_first,
            why="first layer",
        )

    def _as_positions(self, value: jax.Array, ref: int) -> jax.Array:
        shape = lower_quantised.byte_shape(self.graph.avals[ref])
        return value.astype(jnp.float32).reshape((-1, *(shape or ())))

    def _execute(self, nodes: Sequence[g.Node], values: dict[int, Any]) -> None:
        for node in nodes:
            shape = self.graph.avals[node.output].shape
            made = execute_node(node, [values[r] for r in node.inputs], shape)
            refs = node.outputs if isinstance(node, g.OtherNode) else (node.output,)
            values.update(zip(refs, made, strict=True))


@dataclasses.dataclass(frozen=True)
class _First:
    """`FirstLayer` whose memory is the state of a plan of that layer alone.

    Its masks depend on the frames, not on the rest of the network, and the whole plan's state is
    the engine's own business. Thresholds are those the plan was compiled with.
    """

    plan: NativePlan
    name: str

    def init(self, streams: int) -> PlanState:
        return self.plan.init_state(streams)

    def firing(self, memory: PlanState, state: Any, x: Any, constants: Any) -> jax.Array:
        del state, constants
        _, _, masks = self.plan.apply(memory, x)
        return self.plan.fired(masks)[self.name].reshape(number_of_streams(x), -1).mean(axis=1)

    def after(self, memory: PlanState, x: Any, reset: jax.Array) -> PlanState:
        return self.plan.apply(self.plan.reset(memory, reset), x)[1]


def native_plan(
    net: SkipNet,
    params: Any,
    x: Any,
    *,
    winograd: bool = True,
    keep_outputs: bool = False,
    precision: str | None = None,
    why: str = "asked for",
) -> NativePlan:
    """Folds a skipped network with concrete parameters into a native plan for frames like x.

    Args:
      net: from `skip`.
      params: `{'model': variables, 'gates': {name: parameters}}`, concrete.
      x: a frame of B streams; only shapes are read.
      winograd: F(2x2, 3x3) for 3x3 convolutions of stride 1; errors stay near 1e-6 relative.
      keep_outputs: keep the outputs in the state and write them where they changed, instead of all
        of them into new memory. For large outputs that are read before the next frame.
      precision: 'float32' evaluates what a network quantises as float32; None and 'int8' on bytes.
      why: why this engine, for the report.

    Raises:
      ValueError: no engine on this machine.
      Unsupported: a gate or policy it does not have, or a Skip-Convolution it can't take.
    """
    reason = why_no_engine()
    if reason:
        raise ValueError(f"`engine` (='native') can't run here: {reason}; use engine='auto'.")
    net = once(net, params["model"], x)
    table, found = net.survey(params["model"], x)
    graph = g.build(net.fn, params["model"], x, quantised=precision != "float32")
    check_quantised(graph, precision)
    graph = bytes_inside(graph)
    table = table.without(unused(table, graph))
    layers = {row.name: found[row.name][1] for row in table.skipped()}
    reason = why_unsupported(graph, layers)
    if reason:
        convs = {n.name for n in graph.nodes if isinstance(n, g.QConvNode)}
        kind = UnsupportedOnBytes if convs & set(layers) else Unsupported
        raise kind(
            f"`net` must have Skip-Convolutions the engine can run, but {reason}: use `net.apply`, "
            "engine='plain', or a rule (pattern, None) that leaves them dense."
        )
    return _compiled(
        graph,
        table,
        shapes_of(x),
        layers,
        params["gates"],
        winograd=winograd,
        keep_outputs=keep_outputs,
        why=why,
    )


def why_no_engine() -> str:
    """Why this process can't run native plans; empty where it can."""
    if jax.default_backend() != "cpu":
        return f"it is a CPU's, and computations go to the {jax.default_backend()}"
    return "" if library.available() else library.status()


def _compiled(
    graph: g.Graph,
    table: macs.Table,
    frame: Any,
    layers: Mapping[str, Rule],
    gates: Mapping[str, GateParams],
    *,
    winograd: bool = True,
    keep_outputs: bool = False,
    channels_first: frozenset[int] = frozenset(),
    why: str,
) -> NativePlan:
    graph, first = _frames_as_given(graph)
    first |= channels_first
    graph, leave = _results_as_wanted(graph)
    before, segments = _partition(graph)
    for segment in segments:
        _fill(segment, graph, layers, gates, winograd, first, leave)
    segs = tuple(segments)
    return NativePlan(
        table, frame, why, graph, tuple(before), segs, layers, gates, keep_outputs, first, leave
    )


def _frames_as_given(graph: g.Graph) -> tuple[g.Graph, frozenset[int]]:
    """Frames that are channels first and read by the engine alone enter it as they are."""
    readers = {ref: [n for n in graph.nodes if ref in n.inputs] for ref in graph.inputs}
    moved: dict[int, g.LayoutNode] = {}
    for ref, nodes in readers.items():
        aval = graph.avals[ref]
        if len(nodes) != 1 or len(aval.shape) != 4 or aval.dtype != np.float32:
            continue
        (node,) = nodes
        if not isinstance(node, g.LayoutNode) or is_whole(node.view, aval.shape) != (0, 2, 3, 1):
            continue
        after = [n for n in graph.nodes if node.output in n.inputs]
        returned = {ref, node.output} & {o for o in graph.outputs if isinstance(o, int)}
        if not returned and not any(why_not(n, graph.avals) for n in after):
            moved[ref] = node
    gone = {id(n) for n in moved.values()}
    nodes = [n for n in graph.nodes if id(n) not in gone]
    inputs = [moved[ref].output if ref in moved else ref for ref in graph.inputs]
    first = frozenset(n.output for n in moved.values())
    return dataclasses.replace(graph, nodes=nodes, inputs=inputs), first


def _results_as_wanted(graph: g.Graph) -> tuple[g.Graph, frozenset[int]]:
    """Results that XLA would only turn channels first leave the engine so.

    Turning a small map costs XLA more than the engine takes for a frame that stands still.
    """
    made = {n.output: n for n in graph.nodes if not isinstance(n, g.OtherNode)}
    turned: dict[int, int] = {}
    for node in graph.nodes:
        if not isinstance(node, g.LayoutNode) or graph.outputs.count(node.output) != 1:
            continue
        (source,) = node.inputs
        aval = graph.avals[source]
        producer = made.get(source)
        # Bytes, several maps in one and what XLA makes are turned by XLA.
        if producer is None or aval.dtype != np.float32 or len(aval.shape) != 4:
            continue
        if isinstance(producer, g.DequantizeNode | g.FlattenNode) or why_not(producer, graph.avals):
            continue
        readers = [n for n in graph.nodes if {source, node.output} & set(n.inputs)]
        xla = [n for n in readers if n is not node and why_not(n, graph.avals)]
        alone = source not in graph.outputs and node.output not in {
            r for n in readers for r in n.inputs
        }
        if alone and not xla and is_whole(node.view, aval.shape) == (0, 3, 1, 2):
            turned[node.output] = source
    nodes = [n for n in graph.nodes if n.output not in turned or isinstance(n, g.OtherNode)]
    outputs = [turned.get(o, o) if isinstance(o, int) else o for o in graph.outputs]
    return dataclasses.replace(graph, nodes=nodes, outputs=outputs), frozenset(turned.values())


def why_unsupported(graph: g.Graph, layers: Mapping[str, Rule]) -> str:
    """Which Skip-Convolutions of a folded network the engine can't run, and why; empty for none."""
    reasons = {
        n.name: why_not(n, graph.avals) or _why_not_rule(n, layers[n.name])
        for n in graph.nodes
        if isinstance(n, g.ConvNode | g.QConvNode | g.OtherNode) and n.name in layers
    }
    return ", ".join(
        sorted(f"it can't run {name!r} ({why})" for name, why in reasons.items() if why)
    )


def _why_not_rule(node: g.Node, rule: Rule) -> str:
    if isinstance(node, g.QConvNode):
        return lower_quantised.why_not_rule(rule)
    if type(rule.gate) not in _GATES:
        return f"no kernel for {rule.gate}"
    policies = [POLICIES[name] for name in schema.names("Policy")]
    known = rule.policy is None or type(rule.policy) in policies
    return "" if known else f"no kernel for the policy {rule.policy}"


def _partition(graph: g.Graph) -> tuple[list[g.Node], list[_Segment]]:
    """Each native node into the first program that can hold it, XLA nodes between them."""
    program = dict.fromkeys(graph.inputs, 0)  # first program that may read a tensor
    done = dict.fromkeys(graph.inputs, -1)  # program after which its value exists
    inside: dict[int, int] = {}  # program that makes it
    before: list[g.Node] = []
    segments: list[_Segment] = []
    made: set[int] = set()  # by XLA before the first program
    for node in graph.nodes:
        if _continues(node, graph, made) or why_not(node, graph.avals):
            time = max((done[r] for r in node.inputs), default=-1)
            (before if time < 0 else segments[time].after).append(node)
            refs = node.outputs if isinstance(node, g.OtherNode) else (node.output,)
            for ref in refs:
                program[ref], done[ref] = time + 1, time
            made.update(refs if time < 0 else ())
            continue
        at = max(program[r] for r in node.inputs)
        while len(segments) <= at:
            segments.append(_Segment())
        segments[at].nodes.append(node)
        program[node.output] = done[node.output] = inside[node.output] = at
    _connect(graph, segments, inside)
    return before, segments


def _continues(node: g.Node, graph: g.Graph, made: Collection[int]) -> bool:
    """Whether XLA, which makes the frame, goes on to scale it.

    A frame of a few channels enters a program as it is if convolutions alone read it; any other
    operation wants channels in whole vectors, of which a frame fills a fifth.
    """
    if not isinstance(node, g.AffineNode | g.UnaryNode) or node.inputs[0] not in made:
        return False
    shape = position_shape(graph.avals[node.output])
    return shape is not None and shape[2] < FEW


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
    channels_first: frozenset[int],
    leave_first: frozenset[int],
) -> None:
    scaled = scaled_inputs(graph, segment.nodes)
    builder = ByteBuilder(winograd=winograd)
    read = {r for n in segment.nodes if not isinstance(n, g.FlattenNode) for r in n.inputs}
    leaving = {n.output for n in segment.nodes if isinstance(n, g.DequantizeNode)} - read
    lowering = Lowering(
        builder,
        graph.avals,
        layers,
        gates,
        leaving=leaving,
        scaled=scaled,
        channels_first=channels_first,
        leave_first=leave_first,
    )
    for ref in segment.inputs:
        lowering.input(ref, segment.nodes)
    for node in segment.nodes:
        lowering.node(node)
    for ref in segment.outputs:
        lowering.output(ref)
    segment.program = lowering.builder.finish()


def __getattr__(name: str) -> Any:
    """`compile_plan`, which lived here before there were other engines."""
    if name != "compile_plan":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from skipconv_jax.plans.compile import compile_plan

    return compile_plan
