"""Eq. 2 and 3 on volumes: a 3D network, and a 1D one, skipped under the contract of the 2D ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import macs, skip
from skipconv_jax.ops import AlwaysGate, GumbelGate, InputNormGate


class Residual3D(nn.Module):
    """A network on clips or volumes (B, D, H, W, C): stem, a strided and a residual block, head."""

    rank: int = 3

    @nn.compact
    def __call__(self, x):
        def conv(features, name, window=3, stride=1, **kwargs):
            pad = ((window // 2, window // 2),) * self.rank
            size, steps = (window,) * self.rank, (stride,) * self.rank
            return nn.Conv(features, size, steps, pad, name=name, **kwargs)

        x = nn.relu(conv(6, "stem")(x))
        y = nn.relu(conv(8, "down", stride=2)(x))
        y = conv(8, "depthwise", feature_group_count=8, use_bias=False)(y)
        x = nn.relu(y + conv(8, "shortcut", window=1, stride=2)(x))
        return conv(3, "head", window=1)(x)


# Only a corner of the volume changes from frame to frame; sizes that blocks do not divide.
def frames_of(shape, count=4):
    base = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    frames = [base]
    for t in range(1, count):
        frame = frames[-1].copy()
        corner = (slice(None), *(slice(0, 2) for _ in shape[1:-1]))
        frame[corner] += np.float32(0.5 * t)
        frames.append(frame)
    return jnp.asarray(np.stack(frames))


def variables_of(model, x):
    """Drawn eagerly: compiling every initialiser takes longer than the tests."""
    rng, shapes = np.random.default_rng(1), jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), s.dtype), shapes)


@pytest.fixture(scope="module", params=[(2, 7, 9, 6, 2), (2, 21, 2)], ids=["3d", "1d"])
def volumes(request):
    clip = frames_of(request.param)
    model = Residual3D(rank=len(request.param) - 2)
    return model.apply, variables_of(model, clip[0]), clip


@pytest.mark.parametrize(
    ("gate", "implementation"),
    [(AlwaysGate(block=4), None), (InputNormGate(0.0, block=3), "dense")],
)
def test_equals_the_dense_network(volumes, gate, implementation):
    fn, variables, clip = volumes
    net = skip(fn, gate=gate, implementation=implementation)
    params, state = net.init(variables, clip[0])
    table = net.table(variables, clip[0])
    assert [row.name for row in table.rows if not row.skipped] == []
    apply, dense, whole = jax.jit(net.apply), jax.jit(fn), table.macs
    for t, x in enumerate(clip):
        y, state = apply(params, state, x)
        np.testing.assert_allclose(y, dense(variables, x), rtol=1e-4, atol=1e-4)
        spent = np.asarray(macs.spent_total(table, state))
        if t and isinstance(gate, InputNormGate):
            assert (spent < 0.9 * whole).all()
        else:
            np.testing.assert_allclose(spent, whole, rtol=1e-6)


def test_repeated_frame_fires_nowhere(volumes):
    fn, variables, clip = volumes
    net = skip(fn, gate=InputNormGate(1e-6, block=2))
    params, state = net.init(variables, clip[0])
    apply = jax.jit(net.apply)
    first, state = apply(params, state, clip[0])
    again, state = apply(params, state, clip[0])
    np.testing.assert_array_equal(first, again)
    assert all(float(layer.fired.sum()) == 0 for layer in state.values())


def test_macs_of_the_volume():
    x = jnp.zeros((1, 8, 8, 8, 2))
    model = Residual3D()
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    rows = {row.name: row.macs for row in skip(model.apply).table(shapes, x).rows}
    assert rows == {
        "stem": 27 * 2 * 6 * 512,
        "down": 27 * 6 * 8 * 64,
        "depthwise": 27 * 8 * 64,
        "shortcut": 6 * 8 * 64,
        "head": 8 * 3 * 64,
    }


def test_gumbel_gates_train_on_volumes():
    clip = frames_of((1, 4, 4, 4, 2), count=2)
    model = Residual3D()
    variables = variables_of(model, clip[0])
    net = skip(model.apply, gate=GumbelGate(block=2, bias_init=0.5))
    params, state = net.init(variables, clip[0], key=jax.random.key(2))
    table = net.table(variables, clip[0])

    def loss(params, state):
        y, state = net.apply(params, state, clip[0], rng=jax.random.key(3))
        y, state = net.apply(params, state, clip[1], rng=jax.random.key(4))
        return (y**2).mean() + macs.gate_loss(table, state)

    grads = jax.jit(jax.grad(loss))(params, state)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    for name, gate in grads["gates"].items():
        assert float(jnp.abs(gate["bias"]).max()) > 0, name
