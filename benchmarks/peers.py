"""Dense runtimes a user could take instead, all given the same folded network.

Each `*_runner(graph, threads)` returns a function from a frame `(1, H, W, C)` float32 (NumPy)
to the network's outputs. Batch norm is folded for every peer, as their own converters would do.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.onnx_files import onnxruntime_session, openvino_request
from skipconv_jax.program import fold as g
from skipconv_jax.program.fold.execute import execute_node

Runner = Callable[[np.ndarray], Any]
_UNARY = {"relu": "Relu", "logistic": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "sqrt": "Sqrt"}
_BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min"}


class _Onnx:
    """Writes a graph as an ONNX model in NCHW."""

    def __init__(self, graph: g.Graph) -> None:
        from onnx import TensorProto, helper, numpy_helper

        self._helper, self._array, self._float = helper, numpy_helper.from_array, TensorProto.FLOAT
        self.graph, self._count = graph, 0
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: np.ndarray) -> str:
        """Name of a new initializer."""
        name = f"k{len(self.constants)}"
        self.constants.append(self._array(np.ascontiguousarray(value), name))
        return name

    def op(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Name of the output of a new operation."""
        self._count += 1
        out = f"v{self._count}"
        self.nodes.append(self._helper.make_node(kind, inputs, [out], **attributes))
        return out

    def act(self, kind: str, x: str) -> str:
        """An activation."""
        if kind == "none":
            return x
        if kind == "relu6":
            low, high = np.float32(0), np.float32(6)
            return self.op("Clip", [x, self.constant(np.array(low)), self.constant(np.array(high))])
        if kind == "swish":
            return self.op("Mul", [x, self.op("Sigmoid", [x])])
        return self.op(_UNARY[kind], [x])

    def scaled(self, x: str, weight: float) -> str:
        """x times a scalar."""
        return self.op("Mul", [x, self.constant(np.array(weight, np.float32))])

    def upsample(self, x: str, factor: int) -> str:
        """Nearest."""
        if factor == 1:
            return x
        scales = self.constant(np.array([1, 1, factor, factor], np.float32))
        options = {"mode": "nearest", "nearest_mode": "floor"}
        return self.op(
            "Resize", [x, "", scales], coordinate_transformation_mode="asymmetric", **options
        )

    def node(self, node: g.Node, x: list[str]) -> str:
        """One node of the graph."""
        match node:
            case g.ConvNode():
                return self._conv(node, x)
            case g.SumNode():
                parts = [
                    self.upsample(a if w == 1 else self.scaled(a, w), f)
                    for a, (_, f, w) in zip(x, node.terms, strict=True)
                ]
                total = parts[0]
                for part in parts[1:]:
                    total = self.op("Add", [total, part])
                return self.act(node.act, total)
            case g.AffineNode():
                scale, shift = (np.reshape(v, (1, -1, 1, 1)) for v in (node.scale, node.shift))
                return self.op(
                    "Add", [self.op("Mul", [x[0], self.constant(scale)]), self.constant(shift)]
                )
            case g.UnaryNode():
                return self.act(node.fn, x[0])
            case g.BinaryNode():
                return self.op(_BINARY[node.fn], x)
            case g.UpsampleNode():
                return self.upsample(x[0], node.factor)
            case g.PoolNode(fn="max"):
                (pt, pb), (pl, pr) = node.padding
                return self.op(
                    "MaxPool",
                    x,
                    kernel_shape=list(node.window),
                    strides=list(node.strides),
                    pads=[pt, pl, pb, pr],
                )
            case g.SpatialSumNode():
                _, h, w, _ = self.graph.avals[node.inputs[0]].shape
                # The runtimes have kernels of their own for the mean, not for the sum.
                return self.scaled(self.op("GlobalAveragePool", x), h * w)
            case g.ConcatNode():
                return self.op("Concat", x, axis=1)
            case g.ReshapeNode():
                return x[0]
        raise NotImplementedError(f"{type(node).__name__} has no ONNX form here")

    def _conv(self, node: g.ConvNode, x: list[str]) -> str:
        (pt, pb), (pl, pr) = node.conv.padding
        inputs = [x[0], self.constant(node.kernel.transpose(3, 2, 0, 1))]
        if node.bias is not None:
            inputs.append(self.constant(np.asarray(node.bias, np.float32)))
        out = self.op(
            "Conv",
            inputs,
            kernel_shape=list(node.conv.window),
            strides=list(node.conv.strides),
            dilations=list(node.conv.dilation),
            group=node.conv.groups,
            pads=[pt, pl, pb, pr],
        )
        return self.act(node.act, out if node.residual is None else self.op("Add", [out, x[1]]))

    def model(self) -> bytes:
        """The serialized model; outputs stay NCHW."""
        helper = self._helper
        b, h, w, c = self.graph.avals[self.graph.inputs[0]].shape
        names = {self.graph.inputs[0]: "x"}
        for node in self.graph.nodes:
            names[node.output] = self.node(node, [names[r] for r in node.inputs])
        outs = [names[r] for r in self.graph.outputs if isinstance(r, int)]
        made = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", self._float, [b, c, h, w])],
            [helper.make_tensor_value_info(o, self._float, None) for o in outs],
            self.constants,
        )
        opset = helper.make_opsetid("", 17)
        model = helper.make_model(made, opset_imports=[opset], ir_version=9)
        return bytes(model.SerializeToString())


def without_flattening(graph: g.Graph) -> g.Graph:
    """The graph whose outputs are maps: peers need not transpose and join what heads make."""
    flat = {n.output: n.inputs for n in graph.nodes if isinstance(n, g.FlattenNode)}
    outputs = [r for o in graph.outputs for r in flat.get(o, (o,))]
    nodes = [n for n in graph.nodes if not isinstance(n, g.FlattenNode)]
    tree = jax.tree.structure(list(range(len(outputs))))
    return dataclasses.replace(graph, nodes=nodes, outputs=outputs, tree=tree)


def onnx_model(graph: g.Graph) -> bytes:
    """The folded network as an ONNX model, NCHW, batch 1."""
    return _Onnx(graph).model()


def _nchw(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def onnxruntime_runner(graph: g.Graph, threads: int) -> Runner:
    """onnxruntime's CPU provider."""
    run, _ = onnxruntime_session(onnx_model(graph), threads)
    return lambda x: run(_nchw(x))


def openvino_runner(graph: g.Graph, threads: int) -> Runner:
    """OpenVINO pinned to float32."""
    run, _ = openvino_request(onnx_model(graph), threads)
    return lambda x: run(_nchw(x))


def torch_runner(graph: g.Graph, threads: int) -> Runner:
    """Eager PyTorch, channels last."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    acts = {
        "none": lambda v: v,
        "relu": functional.relu,
        "swish": functional.silu,
        "logistic": torch.sigmoid,
    }
    binary: dict[str, Any] = {
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "div": torch.div,
    }

    def padded(v: Any, pads: Any, value: float = 0.0) -> tuple[Any, tuple[int, ...]]:
        """Uneven padding as an operation of its own, even padding for the operation to do."""
        (t, b), (l, r) = pads
        if (t, l) == (b, r):
            return v, (t, l)
        return functional.pad(v, (l, r, t, b), value=value), (0, 0)

    def other(node: g.Node, x: list[Any]) -> Any:
        match node:
            case g.AffineNode():
                scale, shift = (
                    torch.from_numpy(np.array(v, np.float32)).reshape(1, -1, 1, 1)
                    for v in (node.scale, node.shift)
                )
                return x[0] * scale + shift
            case g.UnaryNode():
                return acts[node.fn](x[0])
            case g.BinaryNode():
                return binary[node.fn](*x)
            case g.SpatialSumNode():
                return x[0].sum((2, 3), keepdim=True)
            case g.ReshapeNode():
                return x[0]
            case g.PoolNode(fn="max"):
                v, pad = padded(x[0], node.padding, -float("inf"))
                return functional.max_pool2d(v, node.window, node.strides, pad)
        raise NotImplementedError(f"{type(node).__name__} has no torch form here")

    last = torch.channels_last
    kernels = {
        n.name: torch.from_numpy(n.kernel.transpose(3, 2, 0, 1).copy()).to(memory_format=last)
        for n in graph.nodes
        if isinstance(n, g.ConvNode)
    }
    biases = {
        n.name: torch.from_numpy(np.array(n.bias, np.float32))
        for n in graph.nodes
        if isinstance(n, g.ConvNode) and n.bias is not None
    }

    def one(node: g.Node, x: list[Any]) -> Any:
        if isinstance(node, g.SumNode):
            parts = [
                v if f == 1 else functional.interpolate(v, scale_factor=f, mode="nearest")
                for v, f in zip(
                    [v if w == 1 else v * w for v, (_, _, w) in zip(x, node.terms, strict=True)],
                    node.factors,
                    strict=True,
                )
            ]
            return acts[node.act](sum(parts[1:], parts[0]))
        if not isinstance(node, g.ConvNode):
            return other(node, x)
        conv = node.conv
        v, padding = padded(x[0], conv.padding)
        options = (conv.strides, padding, conv.dilation, conv.groups)
        z = functional.conv2d(v, kernels[node.name], biases.get(node.name), *options)
        return acts[node.act](z if node.residual is None else z + x[1])

    def run(x: np.ndarray) -> Any:
        with torch.inference_mode():
            frame = torch.from_numpy(_nchw(x)).to(memory_format=last)
            values = {graph.inputs[0]: frame}
            for node in graph.nodes:
                values[node.output] = one(node, [values[r] for r in node.inputs])
            return [values[r].numpy() for r in graph.outputs if isinstance(r, int)]

    return run


def xla_runner(graph: g.Graph, threads: int) -> Runner:
    """The folded network under `jax.jit`, NHWC; XLA takes the threads of the process."""
    del threads
    convs = [n for n in graph.nodes if isinstance(n, g.ConvNode)]
    kernels = [jax.numpy.asarray(n.kernel) for n in convs]

    @jax.jit
    def run(kernels: list[jax.Array], x: jax.Array) -> Any:
        given = {n.output: k for n, k in zip(convs, kernels, strict=True)}
        values: dict[int, Any] = {graph.inputs[0]: x}
        for node in graph.nodes:
            filled = node
            if isinstance(node, g.ConvNode):
                kernel: Any = given[node.output]
                filled = dataclasses.replace(node, kernel=kernel)
            shape = graph.avals[node.output].shape
            made = execute_node(filled, [values[r] for r in node.inputs], shape)
            values[node.output] = made[0]
        return [values[r] for r in graph.outputs if isinstance(r, int)]

    return lambda x: jax.block_until_ready(run(kernels, x))


RUNNERS = {
    "onnxruntime": onnxruntime_runner,
    "OpenVINO f32": openvino_runner,
    "torch channels_last": torch_runner,
    "XLA dense": xla_runner,
}
