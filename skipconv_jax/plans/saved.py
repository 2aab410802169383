"""Saved plans: `save(plan, "net.skc")` and `load_plan("net.skc")`.

What is saved needs neither the network nor its code: the program, weights, gates, names and the
structure of what the network returns. `skipconv.h` runs the same file without Python.
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
from skipconv_jax.plans import skc_file
from skipconv_jax.plans.native import NativePlan
from skipconv_jax.plans.skc_file import MaskDesc, PlanFileError, SavedPlan, TensorDesc

State = tuple[jax.Array, ...]
Constants = tuple[tuple[jax.Array, jax.Array, jax.Array], ...]


def save(plan: NativePlan, path: str | os.PathLike[str]) -> None:
    """Writes a native plan of one program, in one move.

    Raises:
      ValueError: the plan runs in XLA what the file can't hold, or the network returns containers
        other than dicts, lists and tuples.
    """
    if not isinstance(plan, NativePlan):
        raise ValueError(
            f"`plan` (={type(plan).__name__}) must be of the native engine to be saved: "
            f"{library.status()}"
        )
    graph = plan.graph
    _check_whole(plan)
    (segment,) = plan.segments
    program = segment.finished()
    where = {ref: i for i, ref in enumerate(segment.outputs)}
    paths = [p for p, _ in jax.tree_util.tree_flatten_with_path(_numbered(graph.tree))[0]]
    first: dict[int, str] = {}
    for tree_path, ref in zip(paths, graph.outputs, strict=True):
        first.setdefault(ref, "output" + jax.tree_util.keystr(tree_path))
    inputs = tuple(
        _tensor(_input_name(graph.inputs, ref), graph.avals[ref].shape[1:])
        for ref in segment.inputs
    )
    outputs = tuple(_tensor(first[ref], graph.avals[ref].shape[1:]) for ref in segment.outputs)
    masks = tuple(
        MaskDesc(name, slot.offset, slot.grid)
        for name, slot in program.masks.items()
        if name in plan.layers
    )
    meta = {
        "tree": _skeleton(_numbered(graph.tree)),
        "leaves": [where[ref] for ref in graph.outputs],
        "inputs": [list(graph.inputs).index(ref) for ref in segment.inputs],
        "program_inputs": [list(shape) for shape in program.inputs],
        "program_outputs": [list(shape) for shape in program.outputs],
        "state_size": program.state_size,
        "mask_size": program.mask_size,
        "names": list(program.names),
        "streams": plan.streams,
    }
    (constants,) = plan.constants
    words, weights, gates = (np.asarray(c) for c in constants)
    skc_file.write(path, SavedPlan(words, weights, gates, inputs, outputs, masks, meta))


def _check_whole(plan: NativePlan) -> None:
    graph = plan.graph
    if plan.before or len(plan.segments) != 1 or plan.segments[0].after:
        raise ValueError(
            "`plan` must run in one native call to be saved; XLA runs a part of it:\n"
            + plan.report()
        )
    if plan.channels_first:
        raise ValueError(
            "`plan` must take frames (B, H, W, C) to be saved; this one takes them channels first."
        )
    made = set(plan.segments[0].outputs)
    for output in graph.outputs:
        if not isinstance(output, int) or output not in made:
            raise ValueError(
                "`plan` must return only what it computes from the frame to be saved; "
                f"output {graph.outputs.index(output)} is a constant or the frame itself."
            )


def _numbered(tree: Any) -> Any:
    return jax.tree.unflatten(tree, range(tree.num_leaves))


def _input_name(inputs: Sequence[int], ref: int) -> str:
    return "x" if len(inputs) == 1 else f"x[{list(inputs).index(ref)}]"


def _tensor(name: str, shape: Sequence[int]) -> TensorDesc:
    return TensorDesc(name, tuple(shape), tuple(range(len(shape))))


def _skeleton(value: Any) -> Any:
    """The structure as JSON, leaves as their numbers."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        return {"dict": {str(k): _skeleton(v) for k, v in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_skeleton(v) for v in value]}
    raise ValueError(
        f"`plan` returns a {type(value).__name__}; to be saved the network must return dicts, "
        "lists, tuples and arrays."
    )


def _structure(value: Any) -> Any:
    """What `_skeleton` was made of."""
    if not isinstance(value, dict):
        return value
    ((kind, parts),) = value.items()
    if kind == "dict":
        return {k: _structure(v) for k, v in parts.items()}
    made = [_structure(v) for v in parts]
    return tuple(made) if kind == "tuple" else made


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedPlan:
    """A plan from a file; steps as the plan that was saved does, to the bit.

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

    @property
    def streams(self) -> int:
        """B of the example frame that the plan was compiled for; any other works too."""
        return int(self.meta["streams"])

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
        leaves = jax.tree.leaves(x)
        frames = []
        for tensor, leaf, shape in zip(
            self.inputs, self.meta["inputs"], self.meta["program_inputs"], strict=True
        ):
            frame = leaves[leaf] if leaf < len(leaves) else None
            if frame is None or tuple(frame.shape[1:]) != tensor.shape:
                raise ValueError(
                    f"`x` (={jax.tree.map(jnp.shape, x)}) must hold {tensor.name} of shape (B, "
                    f"{', '.join(map(str, tensor.shape))}), as when the plan was saved."
                )
            frames.append(jnp.transpose(frame, (0, *(1 + a for a in tensor.order))))
            frames[-1] = frames[-1].reshape(-1, *shape)
        ((arena,), (const,)) = state, constants or self.constants
        made, arena, masks = self.program.apply(const, arena, *frames, threads=threads)
        values = [_ordered(v, t) for v, t in zip(made, self.outputs, strict=True)]
        tree = jax.tree.map(
            lambda leaf: values[self.meta["leaves"][leaf]], _structure(self.meta["tree"])
        )
        return tree, (arena,), (masks,)

    @functools.cached_property
    def _jitted(self) -> Any:
        return jax.jit(self.apply, donate_argnums=0, static_argnames="threads")

    def step(
        self, state: State, x: Any, constants: Constants | None = None, *, threads: int = 0
    ) -> tuple[Any, State, State]:
        """`apply`, compiled once, with the state updated in place (the old one is gone)."""
        result: tuple[Any, State, State] = self._jitted(
            state, x, constants or self.constants, threads=threads
        )
        return result

    def fired(self, masks: State) -> dict[str, jax.Array]:
        """Masks by convolution, each `(B, nh, nw)`, of the Skip-Convolutions."""
        (flat,) = masks
        return {
            m.name: flat[:, m.offset : m.offset + m.grid[0] * m.grid[1]].reshape(-1, *m.grid)
            for m in self.masks
        }

    def state_bytes(self) -> int:
        """Bytes of state of one stream."""
        return 4 * self.program.state_size

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
            masks={},
            inputs=tuple((int(h), int(w), int(c)) for h, w, c in meta["program_inputs"]),
            outputs=tuple(tuple(int(n) for n in shape) for shape in meta["program_outputs"]),
            names=tuple(meta["names"]),
        )
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise PlanFileError(f"`path` (={path}) is no complete plan: {error!r}") from error
    return LoadedPlan(program, saved.inputs, saved.outputs, saved.masks, meta)
