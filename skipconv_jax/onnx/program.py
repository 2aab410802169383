"""The steps a file leaves for every frame, and how they run over any number of streams."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from skipconv_jax.onnx.nodes import Node, Operator
from skipconv_jax.onnx.reader import Tensor


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A leaf of the variables."""

    name: str


# What a step reads: a made tensor's name, a parameter, a constant of the function, or nothing.
Source = str | Parameter | np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Step:
    """One node to run on every frame."""

    node: Node
    operator: Operator
    sources: tuple[Source, ...]
    shapes: tuple[tuple[int, ...], ...]
    on_frame: bool
    rowwise: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """The steps of a file for one set of input shapes.

    Attributes:
      steps: in order.
      inputs: as the file has them, every axis bound.
      outputs: (name, where its value is) pairs.
      streams: inputs lead with an axis of 1, in whose place any number of streams may come.
    """

    steps: tuple[Step, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[tuple[str, Source], ...]
    streams: bool


def outputs_of(result: Any) -> tuple[Any, ...]:
    """An operator's outputs as a tuple."""
    return tuple(result) if isinstance(result, tuple | list) else (result,)


@dataclasses.dataclass(frozen=True)
class Carried:
    """A tensor during a call.

    Attributes:
      array: its values.
      streams: "in place" of a leading axis of 1, "before" all axes of the file, or "none".
    """

    array: Any
    streams: str


def execute(program: Program, variables: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[Any]:
    """Runs the steps; returns the outputs in the file's order."""
    if not program.streams:
        return _execute_plain(program, variables, inputs)
    streams = next(iter(inputs.values())).shape[0]
    values = {name: Carried(x, "in place") for name, x in inputs.items()}
    for step in program.steps:
        arguments = [
            values[s] if isinstance(s, str) else Carried(_constant(s, variables), "none")
            for s in step.sources
        ]
        results = _run_step(step, arguments, streams)
        values.update({o: r for o, r in zip(step.node.outputs, results, strict=False) if o})
    return [_returned(values, source, streams) for _, source in program.outputs]


def _execute_plain(
    program: Program, variables: Mapping[str, Any], inputs: Mapping[str, Any]
) -> list[Any]:
    values = dict(inputs)
    for step in program.steps:
        arguments = [
            values[s] if isinstance(s, str) else _constant(s, variables) for s in step.sources
        ]
        results = outputs_of(step.operator.fn(step.node, *arguments))
        values.update({o: r for o, r in zip(step.node.outputs, results, strict=False) if o})
    return [values[s] if isinstance(s, str) else jax.numpy.asarray(s) for _, s in program.outputs]


def _constant(source: Source, variables: Mapping[str, Any]) -> Any:
    return variables[source.name] if isinstance(source, Parameter) else source


def _run_step(step: Step, arguments: Sequence[Carried], streams: int) -> list[Carried]:
    """One step over all streams: as the file has it where that is right, else stream by stream."""
    if not step.on_frame:
        results = outputs_of(step.operator.fn(step.node, *(a.array for a in arguments)))
        return [Carried(r, "none") for r in results]
    in_place = all(a.streams != "before" for a in arguments)
    if step.operator.reshapes:
        return [_in_place(arguments[0].array.reshape(streams, *step.shapes[0]), step.shapes[0])]
    if in_place and step.rowwise:
        results = outputs_of(step.operator.fn(step.node, *(a.array for a in arguments)))
        return [Carried(r, "in place") for r in results]
    apart = [_before(a) for a in arguments]
    node = dataclasses.replace(step.node, batched=False)
    traced = [a for a in apart if a.streams == "before"]

    def one(*arrays: Any) -> tuple[Any, ...]:
        rest = iter(arrays)
        given = (next(rest) if a.streams == "before" else a.array for a in apart)
        return outputs_of(step.operator.fn(node, *given))

    results = jax.vmap(one)(*(a.array for a in traced))
    return [_in_place(r, shape) for r, shape in zip(results, step.shapes, strict=True)]


def _before(value: Carried) -> Carried:
    if value.streams != "in place":
        return value
    streams, *rest = value.array.shape
    return Carried(value.array.reshape(streams, 1, *rest), "before")


def _in_place(array: Any, shape: tuple[int, ...]) -> Carried:
    """(B, *shape) as (B, *shape[1:]) where shape leads with 1."""
    if shape[:1] == (1,):
        return Carried(array.reshape(array.shape[0], *shape[1:]), "in place")
    return Carried(array, "before")


def _returned(values: Mapping[str, Carried], source: Source, streams: int) -> Any:
    if not isinstance(source, str):
        return jax.numpy.asarray(source)
    value = values[source]
    # One stream gets what the file returns, also where the file has no axis for it.
    return value.array[0] if value.streams == "before" and streams == 1 else value.array
