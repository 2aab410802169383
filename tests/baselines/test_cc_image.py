"""CC-image: Eq. 8 on the frame, zero elsewhere, no memory; trained as the skipped network is."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import Rule, macs
from skipconv_jax.baselines.cc_image import cc_image
from skipconv_jax.ops import AlwaysGate, GumbelGate
from skipconv_jax.ops.geometry import block_upsample
from skipconv_jax.training.step import gated_loss


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), (2, 2), ((1, 1), (1, 1)), name="a")(x))
        return nn.Conv(4, (1, 1), name="b")(x)


@pytest.fixture(scope="module")
def two():
    x = jax.random.normal(jax.random.key(0), (2, 12, 8, 3))
    model = Two()
    return model.apply, model.init(jax.random.key(1), x), x


def test_computes_where_the_gate_of_the_frame_fires(two):
    fn, variables, x = two
    net = cc_image(fn, [("b", None)], gate=GumbelGate(block=2, bias_init=0.0))
    params, state = net.init(variables, x, key=jax.random.key(2))
    y, state = net.apply(params, state, x)

    conv = lambda v, x: jax.lax.conv_general_dilated(  # noqa: E731
        x, v, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    gate, kernel = params["gates"]["a"], variables["params"]["a"]
    logits = conv(gate["kernel"], x)[..., 0] + gate["bias"][0]
    blocks = logits.reshape(2, 3, 2, 2, 2).max(axis=(2, 4)) >= 0
    assert 0 < float(blocks.mean()) < 1
    np.testing.assert_array_equal(state["a"].fired, blocks.astype(jnp.float32))
    mask = block_upsample(blocks.astype(jnp.float32), 2, (6, 4))[..., None]
    z = mask * conv(kernel["kernel"], x) + kernel["bias"].reshape(1, 1, 1, -1)
    head = variables["params"]["b"]
    expected = jnp.einsum("bhwi,io->bhwo", jax.nn.relu(z), head["kernel"][0, 0])
    expected = expected + head["bias"].reshape(1, 1, 1, -1)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_has_no_memory(two):
    fn, variables, x = two
    net = cc_image(fn, gate=GumbelGate(block=2, bias_init=0.0))
    params, blank = net.init(variables, x, key=jax.random.key(2))
    apply = jax.jit(net.apply)
    first, _ = apply(params, blank, x)
    _, after_other = apply(params, blank, x[::-1] * 3)
    again, state = apply(params, after_other, x)
    np.testing.assert_array_equal(first, again)
    assert net.reset(state) is state


def test_is_the_dense_network_where_everything_fires(two):
    fn, variables, x = two
    net = cc_image(fn, [("b", Rule(AlwaysGate(block=3)))], gate=AlwaysGate(block=2))
    params, state = net.init(variables, x)
    y, state = net.apply(params, state, x)
    np.testing.assert_allclose(y, fn(variables, x), rtol=1e-5, atol=1e-5)
    table = net.table(variables, x)
    np.testing.assert_allclose(macs.spent_total(table, state), table.macs)


def test_trains_like_a_skipped_network(two):
    fn, variables, x = two
    net = cc_image(lambda v, x: (fn(v, x), {}), gate=GumbelGate(block=2, bias_init=0.5))
    params, _ = net.init(variables, x, key=jax.random.key(2))

    class Task:
        def losses(self, outputs, targets):
            return {"error": ((outputs - targets["y"]) ** 2).mean()}

    loss_fn = gated_loss(net, net.table(variables, x), Task(), beta=0.1)
    clip = jnp.stack([x, 0.5 * x, -x], axis=1)
    batch = {"frames": clip, "y": jnp.ones((2, 3, 6, 4, 4))}
    weights = {"model": variables["params"], "gates": params["gates"]}
    grad = jax.jit(jax.grad(loss_fn, has_aux=True))
    grads, (figures, _) = grad(weights, {}, batch, jax.random.key(3))
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))
    assert 0.3 < float(figures.extra["macs_share"]) < 0.95


def test_errors_are_those_of_skip(two):
    fn, variables, x = two
    with pytest.raises(ValueError, match="`implementation`"):
        cc_image(fn, implementation="fast")
    net = cc_image(fn, [("nowhere", None)])
    with pytest.raises(ValueError, match="must match a convolution"):
        net.init(variables, x, key=jax.random.key(0))
    assert {f.name for f in dataclasses.fields(net)} >= {"fn", "rules", "default"}
