"""`load`: an ONNX file as variables and a pure function of a frame."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.onnx import operators as _operators  # noqa: F401  registers them
from skipconv_jax.onnx.build import Builder, narrow
from skipconv_jax.onnx.operators.arithmetic import dtype_of
from skipconv_jax.onnx.program import Parameter, Program, execute
from skipconv_jax.onnx.reader import Tensor, read


@dataclasses.dataclass(frozen=True)
class Quantisation:
    """How a tensor of a quantised file is quantised: real = (q - zero_point) scale.

    Attributes:
      scale: one number, or one per channel.
      zero_point: like `scale`; None is 0.
      axis: of the channels.
      block: values that share a scale along the axis; 0 is all.
    """

    scale: np.ndarray
    zero_point: np.ndarray | None
    axis: int
    block: int


@dataclasses.dataclass(frozen=True, eq=False)
class OnnxFunction:
    """A file as a pure function `fn(variables, x)`; made by `load`.

    Attributes:
      inputs: the file's, every axis bound; one of them is `x` itself, several are a dictionary.
      outputs: names; one of them is returned itself, several as a dictionary.
      quantisation: by the name of the quantised tensor, for files with QuantizeLinear.
      program: the steps that run on a frame.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    quantisation: Mapping[str, Quantisation]
    program: Program

    def __call__(self, variables: Mapping[str, Any], x: Any) -> Any:
        """The file's outputs for a frame of B streams.

        Args:
          variables: from `load`, or others of the same shapes.
          x: `(B, ...)` in the file's own layout, mostly `(B, C, H, W)`; for several inputs a
            dictionary by the file's names. B streams take the place of the file's batch of 1.

        Raises:
          ValueError: inputs of other names, shapes or dtypes than the file's.
        """
        given = self._inputs(x)
        found = execute(self.program, variables, given)
        return found[0] if len(found) == 1 else dict(zip(self.outputs, found, strict=True))

    def _inputs(self, x: Any) -> dict[str, Any]:
        names = [t.name for t in self.inputs]
        if len(names) == 1 and not isinstance(x, Mapping):
            x = {names[0]: x}
        if not isinstance(x, Mapping) or set(x) != set(names):
            found = sorted(x) if isinstance(x, Mapping) else type(x).__name__
            raise ValueError(f"`x` (={found}) must map the file's inputs {names} to arrays.")
        arrays = {t.name: jnp.asarray(x[t.name]) for t in self.inputs}
        lead = {a.shape[:1] for a in arrays.values()}
        for tensor in self.inputs:
            _check(tensor, arrays[tensor.name], self.program.streams)
        if self.program.streams and len(lead) != 1:
            raise ValueError(f"`x` must have as many streams in each input; it has {lead}.")
        return arrays


def _check(tensor: Tensor, array: Any, streams: bool) -> None:
    assert tensor.shape is not None
    wanted = tensor.shape[1:] if streams else tensor.shape
    found = array.shape[1:] if streams else array.shape
    if found != wanted or array.ndim != len(tensor.shape):
        shown = ("B", *wanted) if streams else wanted
        fixed = "" if streams else " (the file fixes its batch; export it with a batch of 1)"
        raise ValueError(
            f"`x` (shape {array.shape}) must have the shape ({', '.join(map(str, shown))}) of the "
            f"input {tensor.name!r}{fixed}."
        )
    if array.dtype != dtype_of(tensor.dtype):
        raise ValueError(
            f"`x` (dtype {array.dtype}) must be {dtype_of(tensor.dtype)}, as the file's input "
            f"{tensor.name!r} is."
        )


def load(
    path_or_bytes: str | os.PathLike[str] | bytes,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[dict[str, jax.Array], OnnxFunction]:
    """A trained network from an ONNX file as a pure JAX function of a frame.

    Everything that doesn't depend on the frame is computed here, so that the function holds
    nothing but the work of a frame.

    Args:
      path_or_bytes: the file, or what is in it.
      shapes: shape of each input whose file leaves axes free, `{"images": (1, 3, 416, 416)}`. A
        free first axis needs none: it is the axis of streams.

    Returns:
      `(variables, fn)`: arrays by the file's names, and `fn(variables, x)`. Float weights and
      quantised ones keep their dtype; 64-bit values become 32-bit ones.

    Raises:
      FileNotFoundError: no such file.
      UnknownOperators: a ValueError that lists every unknown operator with its nodes.
      ValueError: no or a damaged model, axes left free, or shapes that the file contradicts.
    """
    graph = read(path_or_bytes)
    inputs = [_bound(t, (shapes or {}).get(t.name)) for t in graph.inputs]
    extra = sorted(set(shapes or {}) - {t.name for t in graph.inputs})
    if extra:
        names = [t.name for t in graph.inputs]
        raise ValueError(f"`shapes` names {extra}; the file's inputs are {names}.")
    arrays, program = Builder(graph, inputs).build()
    # `jnp.asarray` compiles a copy for every new shape.
    variables = {n: jax.device_put(narrow(a), may_alias=False) for n, a in arrays.items()}
    fn = OnnxFunction(
        tuple(inputs), tuple(o.name for o in graph.outputs), _quantisation(program), program
    )
    return variables, fn


def _bound(tensor: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """The tensor with a size for every axis."""
    said = tensor.shape
    if shape is None:
        if said is None:
            raise ValueError(
                f"The input {tensor.name!r} has no shape in the file; give one, "
                f"`shapes={{{tensor.name!r}: (1, 3, 416, 416)}}`."
            )
        # A free first axis is that of the streams.
        shape = tuple(1 if i == 0 and not isinstance(n, int) else n for i, n in enumerate(said))  # type: ignore[misc]
        free = [
            f"{i} ({n!r})" if n else str(i) for i, n in enumerate(shape) if not isinstance(n, int)
        ]
        if free:
            shown = tuple(n if isinstance(n, int) else str(n or "?") for n in shape)
            raise ValueError(
                f"The input {tensor.name!r} (shape {shown}) leaves axis {', '.join(free)} free; "
                f"bind it, such as `shapes={{{tensor.name!r}: (1, 3, 416, 416)}}`."
            )
    elif said is not None and (
        len(shape) != len(said)
        or any(isinstance(n, int) and n != m for n, m in zip(said, shape, strict=True))
    ):
        raise ValueError(
            f"`shapes[{tensor.name!r}]` (={tuple(shape)}) must fit the file's {said}; export the "
            "network with free axes to bind others."
        )
    if any(not isinstance(n, int | np.integer) or n < 0 for n in shape):
        raise ValueError(f"`shapes[{tensor.name!r}]` (={shape}) must be sizes.")
    return dataclasses.replace(tensor, shape=tuple(int(n) for n in shape))


def _quantisation(program: Program) -> dict[str, Quantisation]:
    """Scales and zero points by the name of the quantised tensor."""
    found = {}
    for step in program.steps:
        node = step.node
        if node.op not in ("QuantizeLinear", "DequantizeLinear") or node.domain:
            continue
        source = step.sources[0]
        name = node.outputs[0]
        if node.op == "DequantizeLinear":
            name = source.name if isinstance(source, Parameter) else node.inputs[0]
        found[name] = Quantisation(
            node.statics[1], node.statics.get(2), node.get("axis", 1), node.get("block_size", 0)
        )
    return found
