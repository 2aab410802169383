"""Quantised ONNX files as graphs on bytes, and as onnxruntime computes them."""

from collections import Counter

import jax
import numpy as np
import pytest

from skipconv_jax import onnx
from skipconv_jax.ops import quantised as q
from skipconv_jax.program import fold
from skipconv_jax.program.fold.execute import execute_node
from tests.quantised.files import frames, quantised_file

KINDS = {
    "uint8 by channel": {"per_channel": True},
    "uint8 by tensor": {"per_channel": False},
    "int8 symmetric": {"symmetric": True, "per_channel": True},
}


@pytest.fixture(scope="module", params=KINDS)
def network(request, tmp_path_factory):
    quantization = pytest.importorskip("onnxruntime.quantization")
    options = dict(KINDS[request.param])
    if options.pop("symmetric", False):
        options |= {
            "activation_type": quantization.QuantType.QInt8,
            "extra_options": {"ActivationSymmetric": True},
        }
    else:
        options["activation_type"] = quantization.QuantType.QUInt8
    path = quantised_file(tmp_path_factory.mktemp("net"), **options)
    variables, fn = onnx.load(path)
    x = jax.ShapeDtypeStruct((1, 3, 12, 16), np.float32)
    return path, fold.build(fn, variables, x), fold.build(fn, variables, x, quantised=False)


def _run(graph, x):
    values = {graph.inputs[0]: x}
    for node in graph.nodes:
        shape = graph.avals[node.output].shape
        for ref, made in zip(
            getattr(node, "outputs", (node.output,)),
            execute_node(node, [values[r] for r in node.inputs], shape),
            strict=True,
        ):
            assert made.dtype == graph.avals[ref].dtype, node
            assert made.shape == graph.avals[ref].shape, node
            values[ref] = made
    return values[graph.outputs[0]]


def test_nothing_is_left_in_float(network):
    _, graph, _ = network
    kinds = Counter(type(n).__name__ for n in graph.nodes)
    assert kinds["QConvNode"] == 6
    assert kinds["QuantizeNode"] == kinds["DequantizeNode"] == 1
    assert not {"ConvNode", "UnaryNode", "BinaryNode", "SumNode", "AffineNode"} & set(kinds)


def test_equals_onnxruntime_within_a_step(network):
    """Fused into integer kernels, and as floats between roundings."""
    runtime = pytest.importorskip("onnxruntime")
    path, graph, _ = network
    (last,) = (n for n in graph.nodes if isinstance(n, fold.DequantizeNode))
    step = last.grid.scale
    run = jax.jit(lambda x: _run(graph, x))
    levels = runtime.GraphOptimizationLevel
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_ALL):
        options = runtime.SessionOptions()
        options.graph_optimization_level = level
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for x in frames(3):
            wanted = session.run(None, {"x": x})[0]
            off = np.abs(np.asarray(run(x)) - wanted) / step
            assert off.max() < 1.01
            assert (off < 0.01).mean() > 0.9


def test_quantised_is_close_to_its_float_evaluation(network):
    _, graph, as_float = network
    assert not any(isinstance(n, fold.QConvNode) for n in as_float.nodes)
    (last,) = (n for n in graph.nodes if isinstance(n, fold.DequantizeNode))
    x = frames(1, seed=5)[0]
    off = np.abs(np.asarray(_run(graph, x)) - np.asarray(_run(as_float, x)))
    assert off.max() < 1.01 * last.grid.scale


def test_a_function_of_a_quantised_number_is_a_table():
    """x * sigmoid(x) with a rounded sigmoid, then another grid: 256 entries."""
    inner, outer = q.Grid(0.05, 100, "uint8"), q.Grid(0.03, -20, "int8")
    sigmoid = q.Grid(1 / 255, 0, "uint8")

    def fn(variables, x):
        a = _requantised(x, inner)
        return _requantised(a * _requantised(jax.nn.sigmoid(a), sigmoid), outer)

    graph = fold.build(fn, {}, jax.ShapeDtypeStruct((1, 4, 4, 3), np.float32))
    kinds = [type(n).__name__ for n in graph.nodes]
    assert kinds == ["QuantizeNode", "QTableNode", "DequantizeNode"]
    x = inner.values[None, :, None, None]
    a = q.dequantize(q.quantize(x, inner), inner)
    gate = q.dequantize(q.quantize(jax.nn.sigmoid(a), sigmoid), sigmoid)
    wanted = q.dequantize(q.quantize(a * gate, outer), outer)
    table = graph.nodes[1].table
    np.testing.assert_array_equal(
        q.dequantize(q.lookup(q.quantize(x, inner), table), outer), wanted
    )


def _requantised(x, grid):
    from skipconv_jax.onnx.operators.quantized import dequantize_linear, quantize_linear

    scale, zero = np.float32(grid.scale), np.asarray(grid.zero, grid.dtype)
    return dequantize_linear(quantize_linear(x, scale, zero, dtype=zero.dtype), scale, zero)


def _graph(fn, variables, x=(1, 6, 6, 4)):
    return fold.build(fn, variables, jax.ShapeDtypeStruct(x, np.float32))


def _kernel(rng, shape):
    return rng.integers(-127, 128, shape).astype(np.int8)


@pytest.mark.parametrize("act", ["silu", "relu", "clip"])
def test_an_activation_behind_a_convolution_is_part_of_its_rounding(act):
    """Without a quantisation between: a clip is exact, others are a table of finer steps."""
    from skipconv_jax.onnx.operators.quantized import dequantize_linear

    rng = np.random.default_rng(0)
    variables = {"w": _kernel(rng, (1, 1, 4, 5)), "scale": rng.uniform(1e-3, 2e-3, 5)}
    variables["scale"] = variables["scale"].astype(np.float32)
    fns = {"silu": jax.nn.silu, "relu": jax.nn.relu, "clip": lambda z: jax.numpy.clip(z, -0.5, 2.0)}
    inner, outer = q.Grid(0.04, 128, "uint8"), q.Grid(0.02, 14, "uint8")

    def fn(v, x):
        w = dequantize_linear(v["w"], v["scale"], np.zeros(5, np.int8), axis=3)
        z = jax.lax.conv_general_dilated(
            _requantised(x, inner), w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return _requantised(fns[act](z + 0.25), outer)

    graph = _graph(fn, variables)
    assert [type(n).__name__ for n in graph.nodes] == [
        "QuantizeNode", "QConvNode", "DequantizeNode",
    ]  # fmt: skip
    x = rng.normal(size=(1, 6, 6, 4)).astype(np.float32) * 2
    steps = (np.asarray(_run(graph, x)) - np.asarray(fn(variables, x))) / outer.scale
    assert np.abs(steps).max() < 1.01
    assert (np.abs(steps) < 0.01).mean() > (0.9 if act == "silu" else 0.99)


def test_what_has_no_integer_form_stays_float_between():
    """A softmax in the middle: bytes before it and behind it."""
    from skipconv_jax.onnx.operators.quantized import dequantize_linear

    rng = np.random.default_rng(1)
    variables = {"w": _kernel(rng, (1, 1, 4, 4)), "v": _kernel(rng, (1, 1, 4, 4))}
    grid = q.Grid(0.02, 128, "uint8")

    def conv(x, w):
        w = dequantize_linear(w, np.float32(1e-3), np.int8(0))
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def fn(v, x):
        a = jax.nn.softmax(_requantised(conv(_requantised(x, grid), v["w"]), grid), axis=-1)
        return conv(_requantised(a, grid), v["v"])

    graph = _graph(fn, variables)
    kinds = [type(n).__name__ for n in graph.nodes]
    assert kinds == [
        "QuantizeNode", "QConvNode", "DequantizeNode", "SoftmaxNode", "QuantizeNode", "QConvNode",
    ]  # fmt: skip
    assert graph.avals[graph.outputs[0]].dtype == np.float32
    x = rng.normal(size=(1, 6, 6, 4)).astype(np.float32)
    np.testing.assert_allclose(_run(graph, x), fn(variables, x), atol=2e-3)
