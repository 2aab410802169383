"""Rewriting convolutions in loop bodies changes their layout and no value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from skipconv_jax.program.canonical import canonical

_NHWC = ("NHWC", "HWIO", "NHWC")


def _scanned_loss(groups: int, stride: int, remat: bool):
    def conv(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=_NHWC,
            feature_group_count=groups,
        )  # fmt: skip

    def loss(kernel, frames):
        def body(total, x):
            z = jax.nn.relu(conv(x, kernel))
            return total + (z * z).mean(), None

        step = jax.checkpoint(body) if remat else body
        return lax.scan(step, jnp.float32(0), frames)[0]

    return loss


def _layouts(jaxpr, inside=False):
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated" and inside:
            found.append(tuple(map(tuple, eqn.params["dimension_numbers"])))
        for body in jax.extend.core.jaxprs_in_params(eqn.params):
            found += _layouts(body, inside or eqn.primitive.name == "scan")
    return found


@pytest.mark.parametrize(
    ("groups", "stride", "remat"), [(1, 1, False), (1, 2, True), (2, 1, False)]
)
def test_gradients_in_a_scan_stay_the_same(groups, stride, remat):
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4 // groups, 6))
    frames = jax.random.normal(jax.random.key(1), (3, 2, 9, 8, 4))
    grad = jax.grad(_scanned_loss(groups, stride, remat), argnums=(0, 1))
    plain, rewritten = jax.jit(grad)(kernel, frames), jax.jit(canonical(grad))(kernel, frames)
    for a, b in zip(plain, rewritten, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_every_convolution_in_the_loop_is_channels_last():
    grad = jax.grad(_scanned_loss(1, 1, False), argnums=(0, 1))
    kernel, frames = jnp.ones((3, 3, 4, 6)), jnp.ones((3, 2, 9, 8, 4))
    last = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    before = _layouts(jax.make_jaxpr(grad)(kernel, frames).jaxpr)
    after = _layouts(jax.make_jaxpr(canonical(grad))(kernel, frames).jaxpr)
    assert set(before) != {last}, "the rewrite has nothing to do: is it still needed?"
    assert len(after) == len(before)
    assert set(after) == {last}


def test_structure_of_arguments_and_results_is_kept():
    def fn(tree, x):
        return {"sum": tree["a"] + x, "key": jax.random.uniform(tree["key"])}

    key = jax.random.key(3)
    out = canonical(fn)({"a": jnp.float32(1), "key": key}, jnp.float32(2))
    assert out["sum"] == 3
    assert out["key"] == jax.random.uniform(key)


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize(("window", "stride", "dilation"), [(3, 2, 1), (2, 1, 2)])
def test_depthwise_convolutions_and_their_gradients_leave_no_grouped_one(
    scanned, window, stride, dilation
):
    def conv(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), [(1, 2), (2, 0)], rhs_dilation=(dilation, dilation),
            dimension_numbers=_NHWC, feature_group_count=6,
        )  # fmt: skip

    def loss(kernel, frames):
        def total(x):
            return (jnp.sin(conv(x, kernel))).sum()

        if scanned:
            return lax.scan(lambda carry, x: (carry + total(x), None), jnp.float32(0), frames)[0]
        return total(frames[0]) + total(frames[1])

    kernel = jax.random.normal(jax.random.key(0), (window, window, 1, 6))
    frames = jax.random.normal(jax.random.key(1), (2, 3, 9, 8, 6))
    grad = jax.value_and_grad(loss, argnums=(0, 1))
    plain, rewritten = jax.jit(grad)(kernel, frames), jax.jit(canonical(grad))(kernel, frames)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), plain,
                 rewritten)  # fmt: skip
    assert "conv_general_dilated" not in str(jax.make_jaxpr(canonical(grad))(kernel, frames))


def test_constants_of_calls_inside_checkpoints():
    """Indices that an ONNX Gather holds: a checkpoint's body has no constants of its own."""
    order = jax.device_put(np.array([2, 0, 1]))
    shuffled = jax.jit(lambda x: x[..., order])

    def loss(kernel, x):
        @jax.checkpoint
        def step(z, _):
            z = lax.conv_general_dilated(
                shuffled(z), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return jnp.tanh(z), None

        return jax.lax.scan(step, x, None, length=2)[0].sum()

    kernel = jax.random.normal(jax.random.key(0), (3, 3, 3, 3))
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 3))
    plain = jax.jit(jax.grad(loss))(kernel, x)
    np.testing.assert_allclose(jax.jit(canonical(jax.grad(loss)))(kernel, x), plain, rtol=1e-4)
