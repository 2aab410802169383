"""From a file's bytes to a plain graph: tensors as NumPy arrays, nodes with Python attributes."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skipconv_jax.extras import required
from skipconv_jax.onnx.nodes import Node

OLDEST = 9


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What a graph says of an input or output.

    Attributes:
      name: the file's.
      shape: sizes; a name or None where the axis is free; None where the rank is.
      dtype: NumPy's.
    """

    name: str
    shape: tuple[int | str | None, ...] | None
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Graph:
    """A file's graph, functions inlined.

    Attributes:
      nodes: in the file's order.
      weights: the initializers.
      inputs: tensors that are given at every call.
      outputs: tensors that are returned.
      opset: of ONNX's own operators.
    """

    nodes: tuple[Node, ...]
    weights: Mapping[str, np.ndarray]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    opset: int


def _onnx() -> Any:
    with required():
        import onnx
    return onnx


def read(source: str | os.PathLike[str] | bytes) -> Graph:
    """The graph of a file or of its bytes.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no ONNX model, a damaged one, one that is too old or too new, or external data
        that lies outside of the model's folder.
    """
    onnx = _onnx()
    if isinstance(source, bytes):
        name, folder, data = "The model", None, source
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"No file {os.fspath(path)!r}; give the path of an ONNX model.")
        name, folder, data = repr(path.name), path.resolve().parent, path.read_bytes()
    else:
        raise ValueError(
            f"`path_or_bytes` (a {type(source).__name__}) must be a path or the bytes of a model."
        )
    model = _parse(onnx, data, name)
    opset = _opset(onnx, model, name)
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    return graph_of(model, folder, opset, name)


def _parse(onnx: Any, data: bytes, name: str) -> Any:
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name} is no ONNX model, or a damaged one: {error}.") from None
    if not model.ir_version or not model.graph.output or not model.opset_import:
        raise ValueError(f"{name} is no ONNX model, or a damaged one: it has no graph.")
    return model


def _opset(onnx: Any, model: Any, name: str) -> int:
    own = [int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if not own or not OLDEST <= own[0] <= newest:
        said = f"opset {own[0]}" if own else "no opset of ONNX's own operators"
        raise ValueError(
            f"{name} has {said}; it must be {OLDEST} to {newest}: export it again, or convert it "
            "with `onnx.version_converter.convert_version`."
        )
    return own[0]


def graph_of(model: Any, folder: Path | None, opset: int, name: str) -> Graph:
    """The plain graph of a parsed model."""
    versions = {
        ("" if o.domain == "ai.onnx" else o.domain): int(o.version) for o in model.opset_import
    }
    versions[""] = opset
    graph = model.graph
    if graph.sparse_initializer:
        raise ValueError(f"{name} has sparse initializers; export it with dense ones.")
    weights = {t.name: array_of(t, folder, name) for t in graph.initializer}
    return Graph(
        nodes=tuple(nodes_of(graph, versions, folder, name)),
        weights=weights,
        inputs=tuple(_tensor(i, name) for i in graph.input if i.name not in weights),
        outputs=tuple(_tensor(o, name) for o in graph.output),
        opset=opset,
    )


def nodes_of(
    graph: Any, versions: Mapping[str, int], folder: Path | None, name: str
) -> Iterator[Node]:
    """The nodes of a graph or subgraph."""
    from onnx import helper

    for proto in graph.node:
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        attributes: dict[str, Any] = {}
        for a in proto.attribute:
            value: Any
            if a.type == a.TENSOR:
                value = array_of(a.t, folder, name)
            elif a.type == a.GRAPH:
                value = _branch(a.g, versions, folder, name)
            else:
                value = helper.get_attribute_value(a)
            if isinstance(value, bytes):
                value = value.decode("utf-8", "replace")
            if a.name in ("to", "output_dtype"):
                value = _dtype(value, f"{name}: `{a.name}` of a {proto.op_type}") if value else None
            attributes[a.name] = value
        named = proto.name or next((o for o in proto.output if o), "")
        yield Node(
            op=proto.op_type,
            name=named,
            version=versions.get(domain, 0),
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            attributes=attributes,
            domain=domain,
        )


@dataclasses.dataclass(frozen=True)
class Branch:
    """A subgraph of `If`."""

    nodes: tuple[Node, ...]
    weights: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]


def _branch(graph: Any, versions: Mapping[str, int], folder: Path | None, name: str) -> Branch:
    return Branch(
        tuple(nodes_of(graph, versions, folder, name)),
        {t.name: array_of(t, folder, name) for t in graph.initializer},
        tuple(o.name for o in graph.output),
    )


def _tensor(value: Any, name: str) -> Tensor:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ValueError(f"{name}: {value.name!r} must be a tensor, not a sequence or an optional.")
    shape: tuple[int | str | None, ...] | None = None
    if kind.HasField("shape"):
        shape = tuple(
            int(d.dim_value) if d.HasField("dim_value") else d.dim_param or None
            for d in kind.shape.dim
        )
    return Tensor(value.name, shape, _dtype(kind.elem_type, f"{name}: the type of {value.name!r}"))


def _dtype(number: Any, what: str) -> np.dtype[Any]:
    from onnx import helper

    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(number))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{what} (={number!r}) must be a data type that ONNX knows.") from error


def array_of(tensor: Any, folder: Path | None, name: str) -> np.ndarray:
    """The values of a tensor, from the file or from its external data."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL:
        plain = TensorProto()
        plain.CopyFrom(tensor)
        plain.raw_data = _external(tensor, folder, name)
        plain.data_location = TensorProto.DEFAULT
        del plain.external_data[:]
        tensor = plain
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{name} is damaged: the tensor {tensor.name!r} of shape {tuple(tensor.dims)} "
            f"can't be read ({str(error).splitlines()[0]})."
        ) from None


def _external(tensor: Any, folder: Path | None, name: str) -> bytes:
    """Bytes of a tensor that lie in a file beside the model, and in no other folder."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said.get("location", "")
    if folder is None:
        raise ValueError(
            f"{name}: the tensor {tensor.name!r} lies in the file {location!r}; load the model by "
            "its path."
        )
    path = folder / location
    if (
        not location
        or Path(location).is_absolute()
        or ".." in Path(location).parts
        or not path.resolve().is_relative_to(folder)
    ):
        raise ValueError(
            f"{name}: external data (={location!r}) of {tensor.name!r} must lie in the model's "
            "own folder."
        )
    if not path.is_file():
        raise ValueError(f"{name}: no file {location!r} with the tensor {tensor.name!r} beside it.")
    try:
        offset = int(said.get("offset", 0))
        length = int(said.get("length", path.stat().st_size - offset))
    except ValueError:
        offset = length = -1
    if offset < 0 or length < 0 or offset + length > path.stat().st_size:
        raise ValueError(
            f"{name}: external data {location!r} ends before the tensor {tensor.name!r} does."
        )
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def unused(nodes: Sequence[Node], outputs: Sequence[str]) -> set[int]:
    """Positions of nodes that no output needs."""
    needed, dead = set(outputs), set()
    for i in range(len(nodes) - 1, -1, -1):
        if needed.isdisjoint(o for o in nodes[i].outputs if o):
            dead.add(i)
        else:
            needed.update(reads(nodes[i]))
    return dead


def reads(node: Node) -> set[str]:
    """Every tensor a node reads, those of its subgraphs included."""
    names = {i for i in node.inputs if i}
    for value in node.attributes.values():
        if isinstance(value, Branch):
            made = {o for n in value.nodes for o in n.outputs} | set(value.weights)
            names |= ({r for n in value.nodes for r in reads(n)} | set(value.outputs)) - made
    return names
