"""From a graph to the steps of a frame: everything independent of the frame is folded away."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from skipconv_jax import json_files
from skipconv_jax.onnx import shapes as static
from skipconv_jax.onnx.nodes import Node, Operator, find
from skipconv_jax.onnx.operators.arithmetic import dtype_of
from skipconv_jax.onnx.operators.quantized import WEIGHT_TYPES
from skipconv_jax.onnx.program import Parameter, Program, Source, Step, outputs_of
from skipconv_jax.onnx.reader import Branch, Graph, Tensor, unused


class UnknownOperators(ValueError):
    """A file with operators that nothing here computes; `nodes` are those that use them."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = tuple(nodes)
        users: dict[str, list[str]] = {}
        for node in nodes:
            kind = f"{node.domain}.{node.op}" if node.domain else node.op
            # A name of a damaged file may hold ends of lines.
            kind = kind if kind.isprintable() and len(kind) < 100 else json_files.brief(kind)
            users.setdefault(f"{kind} (opset {node.version})", []).append(node.name)
        listed = "; ".join(
            f"{kind}: {', '.join(map(repr, names))}" for kind, names in users.items()
        )
        super().__init__(
            f"The file uses operators on the frame that are not known here: {listed}. Export the "
            "network without them, or register them with `skipconv_jax.onnx.operator`."
        )


@dataclasses.dataclass(frozen=True)
class Known:
    """A constant; `origin` names the largest initializer behind it."""

    array: np.ndarray
    origin: str | None = None


@dataclasses.dataclass(frozen=True)
class Made:
    """What a step makes: shape and dtype for one stream, and whether the frame is in it."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    on_frame: bool


_UNKNOWN = object()


class Builder:
    """Reads the nodes in order; every tensor becomes known, made by a step, or unknown."""

    def __init__(self, graph: Graph, inputs: Sequence[Tensor]) -> None:
        self.graph, self.inputs = graph, tuple(inputs)
        self.values: dict[str, Any] = {
            name: Known(array, name) for name, array in graph.weights.items()
        }
        for tensor in self.inputs:
            assert tensor.shape is not None
            self.values[tensor.name] = Made(tensor.name, tensor.shape, dtype_of(tensor.dtype), True)  # type: ignore[arg-type]
        self.steps: list[Step] = []
        self.variables: dict[str, np.ndarray] = {}
        self.unknown: list[Node] = []
        self._parameters: dict[str, Parameter] = {}
        self._readers = Counter(name for node in graph.nodes for name in node.inputs)

    def build(self) -> tuple[dict[str, np.ndarray], Program]:
        outputs = [o.name for o in self.graph.outputs]
        self._run(self.graph.nodes, outputs)
        if self.unknown:
            raise UnknownOperators(self.unknown)
        found = []
        for name in outputs:
            value = self._value(name, "the graph's outputs")
            found.append((name, value.array if isinstance(value, Known) else value.name))
        leads = {t.shape[:1] for t in self.inputs if t.shape is not None}
        return self.variables, Program(
            tuple(self.steps), self.inputs, tuple(found), leads == {(1,)}
        )

    def _run(self, nodes: Sequence[Node], outputs: Sequence[str]) -> None:
        dead = unused(nodes, outputs)
        for i, node in enumerate(nodes):
            if i not in dead:
                self._node(node)

    def _value(self, name: str, reader: Any) -> Any:
        if name not in self.values:
            raise ValueError(
                f"The file is damaged: {reader} read {name!r}, which no node before makes."
            )
        return self.values[name]

    def _node(self, node: Node) -> None:
        inputs = [self._value(name, node) if name else None for name in node.inputs]
        if node.op == "If" and not node.domain:
            self._branch(node, inputs)
            return
        made = self._evaluate(node, inputs)
        self.values.update({o: v for o, v in zip(node.outputs, made, strict=False) if o})

    def _branch(self, node: Node, inputs: Sequence[Any]) -> None:
        """`If` on something known: the nodes of the branch it takes."""
        if not isinstance(inputs[0], Known):
            self.unknown.append(node)
            self.values.update(dict.fromkeys(node.outputs, _UNKNOWN))
            return
        branch = node.get("then_branch" if bool(inputs[0].array.item()) else "else_branch")
        assert isinstance(branch, Branch)
        self.values.update({n: Known(a, n) for n, a in branch.weights.items()})
        self._run(branch.nodes, branch.outputs)
        for outer, inner in zip(node.outputs, branch.outputs, strict=True):
            self.values[outer] = self._value(inner, node)

    def _evaluate(self, node: Node, inputs: Sequence[Any]) -> list[Any]:
        if node.op in ("Shape", "Size") and not node.domain and isinstance(inputs[0], Made):
            return [Known(static.shape_of(node, inputs[0].shape))]
        known = all(i is None or isinstance(i, Known) for i in inputs)
        if node.op == "CastLike" and isinstance(inputs[0], Known) and isinstance(inputs[1], Made):
            # Only the dtype of the second counts.
            return [Known(inputs[0].array.astype(inputs[1].dtype), inputs[0].origin)]
        if known and not self._stays(node, inputs):
            return self._folded(node, inputs)
        operator = find(node)
        if operator is None:
            self.unknown.append(node)
        if operator is None or any(i is _UNKNOWN for i in inputs):
            return [_UNKNOWN] * len(node.outputs)
        return self._step(node, operator, inputs)

    def _stays(self, node: Node, inputs: Sequence[Any]) -> bool:
        """Quantised weights stay as they are: what reads them may want the integers."""
        return (
            node.op == "DequantizeLinear"
            and not node.domain
            and inputs[0].array.ndim > 0
            and inputs[0].array.dtype.name in WEIGHT_TYPES
        )

    def _folded(self, node: Node, inputs: Sequence[Any]) -> list[Any]:
        try:
            arrays = static.fold(node, [None if i is None else i.array for i in inputs])
        except NotImplementedError:
            self.unknown.append(node)
            return [_UNKNOWN] * len(node.outputs)
        sized = [(i.array.size, -k, i.origin) for k, i in enumerate(inputs) if i and i.origin]
        origin = max(sized)[2] if sized else None
        return [Known(a, origin) for a in arrays]

    def _step(self, node: Node, operator: Operator, inputs: Sequence[Any]) -> list[Any]:
        statics = {}
        for position in operator.static:
            given = inputs[position] if position < len(inputs) else None
            if given is not None and not isinstance(given, Known):
                raise ValueError(
                    f"{node} reads {node.inputs[position]!r}, which depends on the frame; it must "
                    "be a constant of the file."
                )
            if given is not None:
                statics[position] = given.array
        node = dataclasses.replace(node, statics=statics)
        sources = [self._source(node, operator, i, value) for i, value in enumerate(inputs)]
        constant = [not (isinstance(v, Made) and v.on_frame) for v in inputs]
        shapes = [
            None if v is None else v.array.shape if isinstance(v, Known) else v.shape
            for v in inputs
        ]
        results = self._infer(node, operator, sources, inputs)
        on_frame = not all(constant)
        outs = tuple(tuple(r.shape) for r in results)
        rowwise = on_frame and self._rowwise(node, operator, shapes, constant, outs)
        node = dataclasses.replace(node, batched=rowwise)
        self.steps.append(Step(node, operator, tuple(sources), outs, on_frame, rowwise))
        return [
            Made(name, tuple(r.shape), r.dtype, on_frame)
            for name, r in zip(node.outputs, results, strict=False)
        ]

    def _rowwise(
        self,
        node: Node,
        operator: Operator,
        shapes: Sequence[Any],
        constant: Sequence[bool],
        outs: Sequence[tuple[int, ...]],
    ) -> bool:
        framed = [s for s, c in zip(shapes, constant, strict=True) if not c and s is not None]
        if any(s[:1] != (1,) for s in [*framed, *outs]):
            return False
        return operator.reshapes or bool(operator.rowwise(node, shapes, constant))

    def _infer(
        self, node: Node, operator: Operator, sources: Sequence[Source], inputs: Sequence[Any]
    ) -> list[Any]:
        """Shapes and dtypes of a step's outputs, for one stream."""
        arguments: list[Any] = []
        for source, value in zip(sources, inputs, strict=True):
            if source is None or isinstance(source, np.ndarray):
                arguments.append(source)
            elif isinstance(value, Known):
                dtype = dtype_of(value.array.dtype)
                arguments.append(jax.ShapeDtypeStruct(value.array.shape, dtype))
            else:
                arguments.append(jax.ShapeDtypeStruct(value.shape, value.dtype))
        held = {i: a for i, a in enumerate(arguments) if not isinstance(a, jax.ShapeDtypeStruct)}
        traced = [a for a in arguments if isinstance(a, jax.ShapeDtypeStruct)]

        def run(*arrays: Any) -> Any:
            rest = iter(arrays)
            return outputs_of(
                operator.fn(
                    node, *(held[i] if i in held else next(rest) for i in range(len(arguments)))
                )
            )

        try:
            return list(jax.eval_shape(run, *traced))
        except Exception as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            of = ", ".join(str(tuple(a.shape)) for a in arguments if a is not None)
            raise ValueError(f"{node} can't take inputs of shapes {of}: {said}") from error

    def _source(self, node: Node, operator: Operator, position: int, value: Any) -> Source:
        if value is None:
            return None
        name = node.inputs[position]
        if isinstance(value, Made):
            return value.name
        array = value.array
        literal = operator.literals and array.size == 1
        if position in operator.static or literal or not is_weight(array):
            return narrow(array)
        if name not in self._parameters:
            self._parameters[name] = Parameter(self._name_for(name, value))
        return self._parameters[name]

    def _name_for(self, tensor: str, value: Known) -> str:
        """The initializer's own name, also for what is computed from it and from nothing else."""
        name = tensor
        if value.origin and value.origin != tensor and self._readers[value.origin] == 1:
            name = value.origin
        while name in self.variables:
            name += "'"
        self.variables[name] = value.array
        return name


def is_weight(array: np.ndarray) -> bool:
    """Floating values, and quantised ones that a DequantizeLinear reads."""
    name = array.dtype.name
    return jax.numpy.issubdtype(array.dtype, np.floating) or name in WEIGHT_TYPES[:-1]


def narrow(array: np.ndarray) -> np.ndarray:
    """In the dtype that JAX computes in; integers beyond 32 bits are held at the ends."""
    dtype = dtype_of(array.dtype)
    if dtype != array.dtype and np.issubdtype(array.dtype, np.integer):
        info = np.iinfo(dtype)
        array = np.clip(array, info.min, info.max)
    return array.astype(dtype)
