"""Trained networks from ONNX files: `variables, fn = load("network.onnx")`.

The file becomes a pure JAX function of a frame, with the file's names for its parameters, so that
`skip`, plans and tables work on it as on any network:

    variables, fn = load("yolox_nano.onnx")
    net = skip(fn)
"""

from skipconv_jax.onnx.build import UnknownOperators
from skipconv_jax.onnx.function import OnnxFunction, Quantisation, load
from skipconv_jax.onnx.nodes import OPERATORS, Node, operator
from skipconv_jax.onnx.reader import Tensor

__all__ = [
    "OPERATORS",
    "Node",
    "OnnxFunction",
    "Quantisation",
    "Tensor",
    "UnknownOperators",
    "load",
    "operator",
]
