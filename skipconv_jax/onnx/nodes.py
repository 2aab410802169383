"""What a file's node is to an operator: its attributes, its opset, and how operators are found."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# (node, per-stream shapes of the inputs, which of them are constant): whether a batch of streams
# that takes the place of a leading axis of 1 leaves the operator as it is.
Rowwise = Callable[["Node", Sequence[Any], Sequence[bool]], bool]


@dataclasses.dataclass(frozen=True)
class Node:
    """One node of a file.

    Attributes:
      op: its type, `Conv`.
      name: the file's name of it, or of its first output.
      version: opset of its domain.
      inputs: names of tensors; empty where an optional one is left out.
      outputs: names of tensors; empty where an optional one is left out.
      attributes: Python values; tensors as NumPy arrays, subgraphs as they are.
      domain: empty for ONNX's own operators.
      statics: inputs that were known when the file was loaded, by position.
      batched: the leading axis holds streams where the file has 1.
    """

    op: str
    name: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    domain: str = ""
    statics: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    batched: bool = False

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(attribute, default)

    def wants(self, output: int) -> bool:
        """Whether the file names this output."""
        return output < len(self.outputs) and bool(self.outputs[output])

    def __str__(self) -> str:
        return f"{self.op} {self.name!r}"


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator as JAX computes it.

    Attributes:
      fn: `fn(node, *inputs)` gives the output, or a tuple of them; None where an input is left out.
      since: first opset this holds for.
      static: positions of inputs that must be known when the file is loaded; NumPy arrays.
      literals: scalars among its inputs are numbers of the function, no parameters.
      rowwise: see `Rowwise`.
      reshapes: the output is the first input's elements in the same order.
    """

    fn: Callable[..., Any]
    since: int
    static: tuple[int, ...]
    literals: bool
    rowwise: Rowwise
    reshapes: bool


OPERATORS: dict[str, list[Operator]] = {}


def always(*_: Any) -> bool:
    """Rowwise for operators that never look at the leading axis."""
    return True


def never(*_: Any) -> bool:
    """Not rowwise: each stream on its own."""
    return False


def first_only(node: Node, shapes: Sequence[Any], constant: Sequence[bool]) -> bool:
    """Rowwise where only the first input depends on the frame: its leading axis is a batch."""
    return all(constant[1:])


def operator(
    name: str,
    since: int = 1,
    *,
    static: tuple[int, ...] = (),
    literals: bool = False,
    rowwise: Rowwise = never,
    reshapes: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as an ONNX operator from an opset on."""

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        entry = Operator(fn, since, static, literals, rowwise, reshapes)
        OPERATORS.setdefault(name, []).append(entry)
        OPERATORS[name].sort(key=lambda o: o.since)
        return fn

    return register


def find(node: Node) -> Operator | None:
    """The operator as the node's opset means it; None where there is none."""
    if node.domain:
        return None
    fitting = [o for o in OPERATORS.get(node.op, ()) if o.since <= node.version]
    return fitting[-1] if fitting else None


def axes_of(node: Node, rank: int, input_since: int) -> list[int] | None:
    """Non-negative `axes`, an attribute before opset `input_since` and input 1 from there on."""
    raw = node.get("axes") if node.version < input_since else node.statics.get(1)
    if raw is None:
        return None
    return [int(a) + rank if a < 0 else int(a) for a in np.atleast_1d(np.asarray(raw))]


def positive(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis


def align(*arrays: Any) -> list[Any]:
    """Arrays of one rank, unit axes in front: NumPy's broadcasting written out."""
    rank = max(a.ndim for a in arrays)
    return [a if a.ndim == rank else a.reshape((1,) * (rank - a.ndim) + a.shape) for a in arrays]
