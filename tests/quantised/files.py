"""Small networks as quantised ONNX files, written by onnxruntime's own quantiser."""

from pathlib import Path

import numpy as np
import pytest

SIZE = (12, 16)


def _network(onnx):
    """Convolutions of every kind with what stands between them in detectors."""
    from onnx import TensorProto, helper

    rng = np.random.default_rng(3)
    weights, nodes = [], []

    def conv(x, out, ci, co, k=3, groups=1, stride=1):
        w = (rng.normal(size=(co, ci // groups, k, k)) / np.sqrt(k * k * ci)).astype(np.float32)
        b = (rng.normal(size=co) / 4).astype(np.float32)
        weights.extend([(f"{out}.w", w), (f"{out}.b", b)])
        pads, strides = [k // 2] * 4, [stride] * 2
        nodes.append(
            helper.make_node(
                "Conv", [x, f"{out}.w", f"{out}.b"], [out], out, pads=pads, strides=strides,
                group=groups, kernel_shape=[k, k],
            )
        )  # fmt: skip
        return out

    def op(kind, inputs, out, **attributes):
        nodes.append(helper.make_node(kind, inputs, [out], out, **attributes))
        return out

    def silu(x):
        return op("Mul", [x, op("Sigmoid", [x], f"{x}.gate")], f"{x}.silu")

    x = op("Relu", [conv("x", "stem", 3, 8, stride=2)], "stem.relu")
    deep = silu(conv(x, "deep", 8, 8, groups=8))
    point = silu(conv(deep, "point", 8, 8, k=1))
    added = op("Add", [x, point], "added")
    leaky = op("LeakyRelu", [conv(added, "grouped", 8, 16, groups=2)], "leaky", alpha=0.1)
    small = op("MaxPool", [leaky], "small", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    mean = op("AveragePool", [small], "mean", kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)
    weights.append(("scales", np.array([1, 1, 2, 2], np.float32)))
    big = op("Resize", [mean, "", "scales"], "big", mode="nearest", nearest_mode="floor",
             coordinate_transformation_mode="asymmetric")  # fmt: skip
    both = op("Concat", [big, added], "both", axis=1)
    gate = op("GlobalAveragePool", [both], "pooled")
    gate = op("Sigmoid", [conv(gate, "squeeze", 24, 24, k=1)], "gate")
    op("Mul", [both, gate], "gated")
    conv("gated", "y", 24, 5, k=1)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [info("x", TensorProto.FLOAT, (1, 3, *SIZE))],
        [info("y", TensorProto.FLOAT, (1, 5, SIZE[0] // 2, SIZE[1] // 2))],
        [onnx.numpy_helper.from_array(a, n) for n, a in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def frames(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A still scene with a square that moves, `(count, 1, 3, H, W)`."""
    rng = np.random.default_rng(seed)
    scene = rng.normal(size=(1, 3, *size)).astype(np.float32)
    shown = np.repeat(scene[None], count, 0)
    for t in range(count):
        shown[t, :, :, 2:5, t % (size[1] - 3) : t % (size[1] - 3) + 3] += 1.5
    return shown


def quantised_file(folder: Path, **options) -> Path:
    """The network quantised by onnxruntime; its options."""
    onnx = pytest.importorskip("onnx")
    quantization = pytest.importorskip("onnxruntime.quantization")
    source, path = folder / "float.onnx", folder / "quantised.onnx"
    onnx.save(_network(onnx), source)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(frames(4, seed=1))

        def get_next(self):
            x = next(self.left, None)
            return None if x is None else {"x": x}

    quantization.quantize_static(
        source, path, Reader(), quant_format=quantization.QuantFormat.QDQ, **options
    )
    return path
