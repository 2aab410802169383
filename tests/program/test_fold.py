"""The folded graph computes what the traced network computes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.models import hrnet_small, init_variables
from skipconv_jax.program import fold as g
from skipconv_jax.program.fold.execute import execute_node

_ACT = {"none": lambda x: x, "relu": nn.relu, "relu6": nn.relu6, "swish": nn.swish}
_ACT |= {"logistic": jax.nn.sigmoid, "tanh": jnp.tanh}
_BINARY = {"add": jnp.add, "sub": jnp.subtract, "mul": jnp.multiply, "div": jnp.divide}


def _upsample(x: jax.Array, factor: int) -> jax.Array:
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


def _run_node(node: g.Node, x: list[jax.Array], graph: g.Graph) -> jax.Array:
    """One node in plain JAX, written from its docstring."""
    match node:
        case g.ConvNode():
            z = node.conv(x[0], jnp.asarray(node.kernel))
            if node.bias is not None:
                z = z + jnp.asarray(node.bias).reshape(1, 1, 1, -1)
            return _ACT[node.act](z if node.residual is None else z + x[1])
        case g.SumNode():
            parts = [_upsample(a, f) for a, f in zip(x, node.factors, strict=True)]
            return _ACT[node.act](sum(parts[1:], parts[0]))
        case g.AffineNode():
            shape = (1,) * (x[0].ndim - 1) + (-1,)
            return x[0] * jnp.reshape(node.scale, shape) + jnp.reshape(node.shift, shape)
        case g.UnaryNode():
            return _ACT[node.fn](x[0])
        case g.BinaryNode():
            return _BINARY[node.fn](*x)
        case g.UpsampleNode():
            return _upsample(x[0], node.factor)
        case g.PoolNode():
            window, strides = (1, *node.window, 1), (1, *node.strides, 1)
            start, fn = (-jnp.inf, jax.lax.max) if node.fn == "max" else (0.0, jax.lax.add)
            padding = ((0, 0), *node.padding, (0, 0))
            pooled = jax.lax.reduce_window(x[0], start, fn, window, strides, padding)
            return pooled / float(np.prod(node.window)) if node.fn == "mean" else pooled
        case g.SpatialSumNode():
            return x[0].sum(axis=(1, 2))
        case g.ConcatNode():
            return jnp.concatenate(x, axis=-1)
        case g.ReshapeNode():
            return x[0].reshape(graph.avals[node.output].shape)
    raise AssertionError(f"no rule in this test for {node}")


def _run(graph: g.Graph, frame: jax.Array) -> Any:
    values = {graph.inputs[0]: frame}
    for node in graph.nodes:
        values[node.output] = _run_node(node, [values[r] for r in node.inputs], graph)
    return [values[r] for r in graph.outputs]


def _randomised(variables: Any) -> Any:
    """Batch statistics and scales away from 0 and 1, so that folding mistakes show."""
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        tree, [a * jnp.asarray(rng.uniform(0.7, 1.4, a.shape), a.dtype) + 0.01 for a in leaves]
    )


def _check(fn: Any, variables: Any, x: jax.Array) -> g.Graph:
    graph = g.build(fn, variables, x)
    expected = jax.tree.leaves(fn(variables, x))
    for got, want in zip(_run(graph, x), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * float(jnp.abs(want).max()))
    return graph


def test_hrnet_folds_to_convolutions_and_sums() -> None:
    model = hrnet_small(joints=5, width=8)
    x = jax.random.normal(jax.random.key(0), (2, 64, 32, 3))
    variables = _randomised(init_variables(model, jax.random.key(1), x))
    graph = _check(lambda v, x: model.apply(v, x), variables, x)
    kinds = {type(node) for node in graph.nodes}
    assert kinds == {g.ConvNode, g.SumNode}
    residual = [n for n in graph.nodes if isinstance(n, g.ConvNode) and n.residual is not None]
    # One residual a block: 1 bottleneck, and 2 blocks on 2 + 3 + 4 branches.
    assert len(residual) >= 1 + 2 * 9
    assert all(n.act == "relu" for n in residual)


class _Mixed(nn.Module):
    """Squeeze-excite, depthwise, pooling, concatenation, upsampling, relu6, a shared kernel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.swish(nn.Conv(8, (3, 3), strides=2)(x))
        d = nn.Conv(8, (5, 5), feature_group_count=8, use_bias=False)(x)
        d = nn.relu6(nn.BatchNorm(use_running_average=True)(d))
        squeezed = nn.Conv(2, (1, 1))(d.mean(axis=(1, 2), keepdims=True))
        d = d * nn.sigmoid(nn.Conv(8, (1, 1))(nn.swish(squeezed)))
        shared = nn.Conv(8, (1, 1))
        d = shared(shared(d))
        pooled = nn.max_pool(d, (3, 3), (2, 2), ((1, 1), (1, 1)))
        up = jnp.broadcast_to(
            pooled[:, :, None, :, None, :],
            (*pooled.shape[:2], 2, pooled.shape[2], 2, pooled.shape[3]),
        ).reshape(d.shape)
        joined = jnp.concatenate([x + up, d], axis=-1)
        summed = nn.pooling.pool(joined, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID")
        return jnp.tanh(joined) * 0.5, summed / 4.0


def test_mixed_network() -> None:
    model = _Mixed()
    x = jax.random.normal(jax.random.key(0), (2, 32, 24, 3))
    variables = _randomised(model.init(jax.random.key(1), x))
    graph = _check(model.apply, variables, x)
    assert not any(isinstance(node, g.OtherNode) for node in graph.nodes)
    names = [n.name for n in graph.nodes if isinstance(n, g.ConvNode)]
    assert {"Conv_4", "Conv_4@1"} <= set(names)
    swish = [n for n in graph.nodes if isinstance(n, g.ConvNode) and n.act == "swish"]
    assert len(swish) == 2


def test_equations_without_a_rule_are_kept() -> None:
    def fn(w: jax.Array, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sin(jnp.flip(y, axis=1))

    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 2))
    graph = g.build(fn, jnp.ones((3, 3, 2, 4)), x)
    others = [n.eqn.primitive.name for n in graph.nodes if isinstance(n, g.OtherNode)]
    assert others == ["rev", "sin"]


@pytest.mark.parametrize("groups", [1, 4])
def test_weights_norm_is_of_the_kernel_before_folding(groups: int) -> None:
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4 // groups, 4))

    def fn(w: jax.Array, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x,
            w,
            (1, 1),
            "SAME",
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y * jnp.full((1, 1, 1, 4), 3.0) + 1.0

    graph = _check(fn, kernel, jax.random.normal(jax.random.key(1), (1, 6, 6, 4)))
    (node,) = graph.nodes
    assert isinstance(node, g.ConvNode)
    np.testing.assert_allclose(node.weights_mean, jnp.abs(kernel).mean(), rtol=1e-6)
    np.testing.assert_allclose(node.kernel, kernel * 3.0, rtol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("padding", [((1, 2), (2, 2)), ((2, 1), (1, 1))])
def test_split_and_transposed_convolutions_have_no_equation_left(groups: int, padding: Any) -> None:
    def fn(w: jax.Array, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x, w, (1, 1), padding, lhs_dilation=(2, 2), feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        a, b, c = jnp.split(y, (3, 4), axis=-1)
        top, bottom = jnp.split(jnp.concatenate([c, b, a], -1), 2, axis=1)
        return top - bottom

    kernel = jax.random.normal(jax.random.key(0), (3, 4, 4 // groups, 8))
    x = jax.random.normal(jax.random.key(1), (1, 6, 5, 4))
    graph = g.build(fn, kernel, x)
    assert not [n for n in graph.nodes if isinstance(n, g.OtherNode | g.LayoutNode)]
    values: dict[int, Any] = {graph.inputs[0]: x}
    for node in graph.nodes:
        inputs = [values[r] for r in node.inputs]
        (values[node.output],) = execute_node(node, inputs, graph.avals[node.output].shape)
    np.testing.assert_allclose(values[graph.outputs[0]], fn(kernel, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [(0, 1), (0, 1, 2, 3, 0)])
def test_a_stem_of_some_positions_or_of_one_twice_stays_as_it_is(channels: Any) -> None:
    def fn(w: jax.Array, x: jax.Array) -> jax.Array:
        parts = [x[:, i::2, k::2][..., np.array(channels)] for i in (0, 1) for k in (0, 1)]
        return jax.lax.conv_general_dilated(
            jnp.concatenate(parts, -1), w, (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4 * len(channels), 4))
    x = jax.random.normal(jax.random.key(1), (1, 8, 6, 4))
    graph = g.build(fn, kernel, x)
    (conv,) = (n for n in graph.nodes if isinstance(n, g.ConvNode))
    assert conv.conv.strides == (1, 1)
    values: dict[int, Any] = {graph.inputs[0]: x}
    for node in graph.nodes:
        inputs = [values[r] for r in node.inputs]
        (values[node.output],) = execute_node(node, inputs, graph.avals[node.output].shape)
    np.testing.assert_allclose(values[graph.outputs[0]], fn(kernel, x), rtol=1e-4, atol=1e-4)
