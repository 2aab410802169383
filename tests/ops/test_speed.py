"""The block-sparse implementation is worth its name: time falls with the active share."""

import time

import jax
import jax.numpy as jnp

from skipconv_jax.ops import Conv
from skipconv_jax.ops.masked_conv import masked_conv


def test_time_falls_with_the_active_share():
    x = jnp.ones((1, 64, 64, 64))
    kernel = jnp.ones((3, 3, 64, 128)) * 1e-2
    conv = Conv.make(x.shape, kernel.shape)
    base = jnp.zeros((1, 64, 64, 128))

    @jax.jit
    def run(mask):
        return masked_conv(
            x, kernel, None, base, mask, conv=conv, block=8, recompute=True, implementation="blocks"
        )

    def best(mask):
        run(mask).block_until_ready()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            run(mask).block_until_ready()
            times.append(time.perf_counter() - start)
        return min(times)

    everything = best(jnp.ones((1, 8, 8)))
    a_tenth = best(jnp.zeros((1, 8, 8)).at[0, 0, :6].set(1))
    nothing = best(jnp.zeros((1, 8, 8)))
    # 302 MMAC against 28 and 0: the bounds leave room for a busy machine.
    assert nothing < everything / 4
    assert a_tenth < everything / 2
