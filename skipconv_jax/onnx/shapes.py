"""Static arithmetic: what doesn't depend on the frame is computed by NumPy when a file is loaded.

Exporters write sizes as small graphs (Shape, Gather, Concat, Range ...). With every axis bound
these have one value. ONNX's own reference implementation, which is plain NumPy, computes them, so
that any operator may appear there.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipconv_jax.onnx.nodes import Node

# Operators that make arrays of any size out of a few numbers; what they may make at load time.
LIMIT_BYTES = 1 << 31
_SIZED_BY = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}


def shape_of(node: Node, shape: Sequence[int]) -> np.ndarray:
    """Shape and Size of a tensor whose shape is known."""
    if node.op == "Size":
        return np.asarray(math.prod(shape), np.int64)
    start, end = node.get("start", 0), node.get("end")
    return np.asarray(shape[slice(start, end)], np.int64)


def fold(node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """The outputs of a node whose inputs are all known.

    Raises:
      ValueError: an operator nobody knows, or one that fails or would fill the memory.
    """
    from onnx.reference import ReferenceEvaluator

    _refuse_oversized(node, inputs)
    proto = _proto(node)
    given = {n: a for n, a in zip(node.inputs, inputs, strict=True) if n and a is not None}
    try:
        outputs = ReferenceEvaluator(proto, opsets={node.domain: node.version}).run(None, given)
    except NotImplementedError:
        raise
    except Exception as error:  # the reference raises anything; the node is what a user can act on
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{node} can't be evaluated: {said}") from error
    return [np.asarray(o) for o in outputs]


def _refuse_oversized(node: Node, inputs: Sequence[np.ndarray | None]) -> None:
    position = _SIZED_BY.get(node.op)
    if position is None:
        if node.op == "Range" and all(i is not None for i in inputs):
            start, stop, step = (float(np.asarray(i).item()) for i in inputs)
            wanted = abs((stop - start) / step) if step else 0.0
        else:
            return
    else:
        sizes = inputs[position]
        wanted = math.prod(float(max(n, 1)) for n in np.asarray(sizes).ravel().tolist())
        if node.op == "Tile" and inputs[0] is not None:
            wanted *= inputs[0].size
    if wanted * 8 > LIMIT_BYTES:
        raise ValueError(
            f"{node} would make {wanted:.3g} values when the file is loaded; that is no network "
            "for a frame."
        )


def _proto(node: Node) -> Any:
    from onnx import helper

    attributes = {}
    for name, value in node.attributes.items():
        if isinstance(value, np.ndarray):
            from onnx import numpy_helper

            value = numpy_helper.from_array(value)
        elif isinstance(value, np.dtype):
            value = helper.np_dtype_to_tensor_dtype(value)
        attributes[name] = value
    kept = {name: value for name, value in attributes.items() if value is not None}
    return helper.make_node(
        node.op, list(node.inputs), list(node.outputs), node.name, domain=node.domain, **kept
    )
