"""Small models, written node by node."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model(
    nodes: Sequence[Any],
    weights: Mapping[str, np.ndarray] | None = None,
    shape: Sequence[int | str | None] = (1, 3, 8, 8),
    *,
    opset: int = 17,
    outputs: Sequence[str] = ("y",),
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of one input `x`."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 10
    return made


node = helper.make_node


def convolution() -> onnx.ModelProto:
    """One 3x3 convolution to 4 channels, named as PyTorch names it."""
    kernel = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    return model(
        [node("Conv", ["x", "conv.weight"], ["y"], pads=[1, 1, 1, 1])], {"conv.weight": kernel}
    )
