"""Dense layers behind and between convolutions run in the same native call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import InputNormGate, compile_plan, native, skip
from skipconv_jax.plans import Plan

pytestmark = pytest.mark.skipif(not native.available(), reason=native.status())


def _conv(x, kernel, layout):
    numbers = (layout, "OIHW" if layout == "NCHW" else "HWIO", layout)
    kernel = kernel if layout == "NCHW" else kernel.transpose(2, 3, 1, 0)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def _row(vector, like):
    return vector.reshape((1,) * (like.ndim - 1) + (-1,))


def _mean_head(v, x, layout):
    y = _conv(x, v["conv"], layout).mean((2, 3) if layout == "NCHW" else (1, 2))
    y = y @ v["wide"].T
    return jax.nn.relu(y + _row(v["bias"], y)) @ v["narrow"]


def _flat_head(v, x, layout):
    y = _conv(x, v["conv"], layout)
    return y.reshape(y.shape[0], -1) @ v["flat"]


def _per_position(v, x, layout):
    """As ConvNeXt: layer norm and a dense layer over the channels of every position."""
    y = _conv(x, v["conv"], layout)
    y = y.transpose(0, 2, 3, 1) if layout == "NCHW" else y
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-5)
    y = y @ v["wide"].T
    return jax.nn.gelu(y + _row(v["bias"], y)).mean((1, 2))


def _normed_head(v, x, layout):
    """Layer norm of a vector."""
    y = _conv(x, v["conv"], layout).mean((2, 3) if layout == "NCHW" else (1, 2))
    y = y - y.mean(-1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-5) * _row(v["scale"], y)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("fn", [_mean_head, _flat_head, _per_position, _normed_head])
def test_one_native_call_equals_the_network(fn, layout):
    rng = np.random.default_rng(0)
    shapes = {"conv": (6, 3, 3, 3), "wide": (20, 6), "bias": (20,), "narrow": (20, 5),
              "flat": (6 * 7 * 5, 4), "scale": (6,)}  # fmt: skip
    variables = {n: jnp.asarray(0.3 * rng.normal(size=s), jnp.float32) for n, s in shapes.items()}
    frames = rng.normal(size=(3, 2, 3, 7, 5)).astype(np.float32)
    frames[2] = frames[1]
    frames[2, 0, :, 2:4, 1:3] += 1
    if layout == "NHWC":
        frames = frames.transpose(0, 1, 3, 4, 2)
    net = skip(lambda v, x: fn(v, x, layout), gate=InputNormGate(0.0, block=2))
    params, _ = net.init(variables, jnp.asarray(frames[0]))
    plan: Plan = compile_plan(net, params, jnp.asarray(frames[0]), engine="native")
    assert "1 native call" in plan.report()
    assert "XLA" not in plan.report()
    state = plan.init_state()
    for frame in map(jnp.asarray, frames):
        y, state, _ = plan.step(state, frame)
        np.testing.assert_allclose(y, fn(variables, frame, layout), rtol=1e-4, atol=1e-5)
