"""Saved plans: `save(plan, "net.skc")` and `load_plan("net.skc")`.

What is saved needs neither the network nor its code: the program, weights, gates, names and the
structure of what the network takes and returns. `skipconv.h` runs the same file without Python.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.native import Program, library, schema
from skipconv_jax.native.lower import gate_values
from skipconv_jax.ops.gates import GateParams
from skipconv_jax.plans import described, skc_file
from skipconv_jax.plans.base import FirstLayer, Plan
from skipconv_jax.plans.native import NativePlan
from skipconv_jax.plans.skc_file import MaskDesc, PlanFileError, SavedPlan, TensorDesc
from skipconv_jax.program import fold as g
from skipconv_jax.program.fold.views import is_whole

State = tuple[jax.Array, ...]
Constants = tuple[tuple[jax.Array, jax.Array, jax.Array], ...]


def save(plan: NativePlan, path: str | os.PathLike[str]) -> None:
    """Writes a native plan of one program, in one move.

    Raises:
      ValueError: the plan runs in XLA what the file can't hold, or the network takes or returns
        containers other than dicts, lists and tuples.
    """
    if not isinstance(plan, NativePlan):
        raise ValueError(
            f"`plan` (={type(plan).__name__}) must be of the native engine to be saved: "
            f"{library.status()}"
        )
    graph = plan.graph
    turned = _check_whole(plan)
    (segment,) = plan.segments
    program = segment.finished()
    made = [turned[ref].inputs[0] if ref in turned else ref for ref in graph.outputs]
    inputs = tuple(
        _tensor(_input_name(graph.inputs, ref), _given(plan, ref)) for ref in segment.inputs
    )
    outputs = _outputs(plan, turned, made)
    masks = tuple(
        MaskDesc(name, slot.offset, slot.grid)
        for name, slot in program.masks.items()
        if name in plan.layers
    )
    taps = {n.name: n.taps for n in graph.nodes if isinstance(n, g.ConvNode)}
    meta = {
        "frame": described.tree_values(plan.frame, "`plan` takes"),
        "tree": described.tree_values(_numbered(graph.tree), "`plan` returns"),
        "leaves": [segment.outputs.index(ref) for ref in made],
        "inputs": [list(graph.inputs).index(ref) for ref in segment.inputs],
        "program_inputs": [list(shape) for shape in program.inputs],
        "program_outputs": [list(shape) for shape in program.outputs],
        "state_size": program.state_size,
        "mask_size": program.mask_size,
        "names": list(program.names),
        "table": described.table_values(plan.table),
        "slots": {
            name: described.slot_values(slot, taps.get(name))
            for name, slot in program.masks.items()
            if name in plan.layers
        },
        "why": plan.why,
    }
    (constants,) = plan.constants
    words, weights, gates = (np.asarray(c) for c in constants)
    skc_file.write(path, SavedPlan(words, weights, gates, inputs, outputs, masks, meta))


def _check_whole(plan: NativePlan) -> dict[int, g.LayoutNode]:
    """Results that only turn the axes of what the program makes, by their tensors.

    Raises:
      ValueError: XLA does more than that.
    """
    graph = plan.graph
    turned = {
        n.output: n
        for s in plan.segments
        for n in s.after
        if isinstance(n, g.LayoutNode) and _is_turned(plan, n)
    }
    after = [n for s in plan.segments for n in s.after if n.output not in turned]
    if plan.before or len(plan.segments) != 1 or after:
        raise ValueError(
            "`plan` must run in one native call to be saved; XLA runs a part of it:\n"
            + plan.report()
        )
    made = {*plan.segments[0].outputs, *turned}
    for output in graph.outputs:
        if not isinstance(output, int) or output not in made:
            raise ValueError(
                "`plan` must return only what it computes from the frame to be saved; "
                f"output {graph.outputs.index(output)} is a constant or the frame itself."
            )
    return turned


def _is_turned(plan: NativePlan, node: g.LayoutNode) -> bool:
    """Whether a node of XLA's hands out one map of the program channels first, or the like."""
    if plan.graph.outputs.count(node.output) != 1:
        return False
    (source,) = node.inputs
    order = is_whole(node.view, plan.graph.avals[source].shape)
    readers = [n for s in plan.segments for n in (*s.nodes, *s.after) if node.output in n.inputs]
    others = source in plan.graph.outputs or any(
        n is not node and isinstance(n, g.LayoutNode) and source in n.inputs
        for s in plan.segments
        for n in s.after
    )
    return order is not None and len(order) == 4 and order[0] == 0 and not readers and not others


def _outputs(
    plan: NativePlan, turned: Mapping[int, g.LayoutNode], made: Sequence[int]
) -> tuple[TensorDesc, ...]:
    """The program's results, as the user's arrays hold them."""
    graph = plan.graph
    paths = [p for p, _ in jax.tree_util.tree_flatten_with_path(_numbered(graph.tree))[0]]
    found: dict[int, TensorDesc] = {}
    for path, ref, source in zip(paths, graph.outputs, made, strict=True):
        shape = graph.avals[ref].shape[1:] if ref in turned else plan.left(ref)
        desc = _tensor("output" + jax.tree_util.keystr(path), shape)
        if ref in turned:
            order = is_whole(turned[ref].view, graph.avals[source].shape) or ()
            desc = dataclasses.replace(desc, order=tuple(order.index(k) - 1 for k in (1, 2, 3)))
        found.setdefault(source, desc)
    return tuple(found[ref] for ref in plan.segments[0].outputs)


def _numbered(tree: Any) -> Any:
    return jax.tree.unflatten(tree, range(tree.num_leaves))


def _input_name(inputs: Sequence[int], ref: int) -> str:
    return "x" if len(inputs) == 1 else f"x[{list(inputs).index(ref)}]"


def _given(plan: NativePlan, ref: int) -> tuple[int, ...]:
    """Shape of a stream's frame as it is given: the engine reads channels-first ones so."""
    shape = plan.graph.avals[ref].shape[1:]
    return (shape[2], *shape[:2]) if ref in plan.channels_first else tuple(shape)


def _tensor(name: str, shape: Sequence[int]) -> TensorDesc:
    return TensorDesc(name, tuple(shape), tuple(range(len(shape))))


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedPlan(Plan):
    """A plan from a file; steps as the plan that was saved does, to the bit.

    It keeps the contract of every plan; only `first_layer` needs the network.

    Attributes:
      program: the native program.
      inputs, outputs, masks: names and shapes.
      meta: the file's JSON.
    """

    program: Program
    inputs: tuple[TensorDesc, ...]
    outputs: tuple[TensorDesc, ...]
    masks: tuple[MaskDesc, ...]
    meta: Mapping[str, Any]

    engine = "native"

    @functools.cached_property
    def constants(self) -> Constants:
        """Program, weights and gate parameters; pass them to `apply` as arguments of a jit."""
        return (self.program.constants,)

    def init_state(self, streams: int | None = None) -> State:
        """State of fresh streams; donate it."""
        return (self.program.init_state(streams or self.streams),)

    def reset(self, state: State, streams: jax.Array | None = None) -> State:
        """State whose next frame computes everything for the given streams `(B,)` (default all)."""
        return (self.program.reset(state[0], streams),)

    def apply(
        self, state: State, x: Any, constants: Constants | None = None, *, threads: int = 0
    ) -> tuple[Any, State, State]:
        """One frame: what the network returns, the new state, and the masks; see `Plan.apply`."""
        self.check(state, x)
        leaves = jax.tree.leaves(x)
        frames = []
        for tensor, leaf, shape in zip(
            self.inputs, self.meta["inputs"], self.meta["program_inputs"], strict=True
        ):
            frames.append(jnp.transpose(leaves[leaf], (0, *(1 + a for a in tensor.order))))
            frames[-1] = frames[-1].reshape(-1, *shape)
        ((arena,), (const,)) = state, constants or self.constants
        made, arena, masks = self.program.apply(const, arena, *frames, threads=threads)
        values = [_ordered(v, t) for v, t in zip(made, self.outputs, strict=True)]
        tree = jax.tree.map(
            lambda leaf: values[self.meta["leaves"][leaf]], described.tree_of(self.meta["tree"])
        )
        return tree, (arena,), (masks,)

    def fired(self, masks: State) -> dict[str, jax.Array]:
        """Masks by convolution, each `(B, nh, nw)`, of the Skip-Convolutions."""
        (flat,) = masks
        return {
            m.name: flat[:, m.offset : m.offset + m.grid[0] * m.grid[1]].reshape(-1, *m.grid)
            for m in self.masks
        }

    def fresh(self, state: State) -> jax.Array:
        """Streams whose next frame computes everything, `(B,)` bool."""
        return self.program.fresh(state[0])

    def with_gates(self, gates: Mapping[str, GateParams]) -> Constants:
        """`constants` with other gate parameters (thresholds, gate kernels); nothing recompiles."""
        ((words, weights, packed),) = self.constants
        values = np.array(packed)
        for row in self.table.skipped():
            slot, taps = described.slot_of(self.meta["slots"][row.name])
            if slot.gate.kind == "always" or row.gate is None:
                continue
            new = slot.words(gate_values(row.gate, gates[row.name], taps))
            values[slot.gate_offset : slot.gate_offset + new.size] = new
        return ((words, weights, jnp.asarray(values)),)

    def first_layer(self) -> FirstLayer:
        """Not of a file, which holds one program: the whole network.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            "`plan` (=LoadedPlan) must be compiled from the network for reset policies that look "
            "at its first layer; use others, or `compile_plan`."
        )

    def report(self) -> str:
        """What runs where."""
        return (
            f"{len(self.program.names)} operations in 1 native call, "
            f"{self.state_bytes() / 1e6:.1f} MB of state per stream"
        )


def _ordered(value: jax.Array, tensor: TensorDesc) -> jax.Array:
    """(B, h, w, c) of the engine -> the user's axes."""
    canonical = [tensor.shape[axis] for axis in tensor.order]
    back = np.argsort(tensor.order)
    return value.reshape(-1, *canonical).transpose(0, *(1 + int(a) for a in back))


def load_plan(path: str | os.PathLike[str]) -> LoadedPlan:
    """The plan of a file that `save` wrote.

    Raises:
      PlanFileError: no plan, damaged, or of another version of the file or the engine.
      RuntimeError: the native engine is not available.
    """
    library.load()
    saved = skc_file.read(path)
    if not saved.words.size or saved.words[0] != schema.digest():
        raise PlanFileError(
            f"`path` (={path}) holds a program of another engine; save the plan again with this "
            "version."
        )
    try:
        meta = saved.meta
        program = Program(
            words=saved.words,
            weights=saved.weights,
            gates=saved.gates,
            state_size=int(meta["state_size"]),
            mask_size=int(meta["mask_size"]),
            masks={name: described.slot_of(slot)[0] for name, slot in meta["slots"].items()},
            inputs=tuple((int(h), int(w), int(c)) for h, w, c in meta["program_inputs"]),
            outputs=tuple(tuple(int(n) for n in shape) for shape in meta["program_outputs"]),
            names=tuple(meta["names"]),
        )
        return LoadedPlan(
            table=described.table_of(meta["table"]),
            frame=described.tree_of(meta["frame"]),
            why=str(meta["why"]),
            program=program,
            inputs=saved.inputs,
            outputs=saved.outputs,
            masks=saved.masks,
            meta=meta,
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise PlanFileError(f"`path` (={path}) is no complete plan: {error!r}") from error
