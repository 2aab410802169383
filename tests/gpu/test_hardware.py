"""The accelerator paths on the accelerator itself; skipped where the machine has none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.ops import Conv
from skipconv_jax.ops.masked_conv import masked_conv

PLATFORM = jax.default_backend()
pytestmark = pytest.mark.skipif(PLATFORM == "cpu", reason="needs a GPU or TPU")

# TF32 and one-pass bfloat16 products keep 10 and 8 bits.
TOLERANCE = {"gpu": 5e-3, "tpu": 2e-2}.get(PLATFORM, 0.0)
IMPLEMENTATIONS = {"gpu": ("packed", "pallas_gpu"), "tpu": ("pallas_tpu",)}.get(PLATFORM, ("none",))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("k", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_equals_the_dense_convolution(implementation, dtype, share, k, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((8, 64, 64, 64)), dtype)
    kernel = jnp.asarray(rng.standard_normal((k, k, 64, 128)) / (8 * k), dtype)
    conv = Conv.make(x.shape, kernel.shape, strides=stride)
    base = jnp.asarray(rng.standard_normal((8, *conv.out_spatial, 128)), jnp.float32)
    mask = jnp.asarray(rng.random((8, *conv.grid(8))) < share, jnp.float32)
    run = [
        jax.jit(
            functools.partial(
                masked_conv, conv=conv, block=8, recompute=True, implementation=implementation
            )
        )
        for implementation in (implementation, "dense")
    ]
    got, expected = (f(x, kernel, None, base, mask) for f in run)
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)
    kept = np.repeat(np.repeat(np.asarray(mask) == 0, 8, 1), 8, 2)[..., None]
    kept = np.broadcast_to(kept[:, : conv.out_spatial[0], : conv.out_spatial[1]], base.shape)
    np.testing.assert_array_equal(np.asarray(got)[kept], np.asarray(base)[kept])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_state_is_updated_in_place(implementation):
    conv = Conv.make((4, 64, 64, 32), (3, 3, 32, 32))
    shapes = [(4, 64, 64, 32), (3, 3, 32, 32), (4, 64, 64, 32), (4, 8, 8)]
    x, kernel, base, mask = (jnp.ones(shape) for shape in shapes)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(base, x, mask):
        return masked_conv(
            x, kernel, None, base, mask, conv=conv, block=8, recompute=True,
            implementation=implementation,
        )  # fmt: skip

    memory = step.lower(base, x, mask).compile().memory_analysis()
    assert memory.alias_size_in_bytes == base.nbytes
