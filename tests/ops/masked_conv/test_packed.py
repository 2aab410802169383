"""Packed tiles beyond the common suite: every capacity, overflow, and branches under vmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.ops import Conv
from skipconv_jax.ops.masked_conv import masked_conv, packed
from tests.ops.cases import named
from tests.ops.masked_conv.contract import AcceleratorContract, StreamsContract


class TestPacked(AcceleratorContract, StreamsContract):
    """A convolution per capacity is compiled, hence few cases."""

    implementation = "packed"
    cases = tuple(named("stride-two-torch", "depthwise", "3d"))
    activations = ("relu", "swish")


def test_capacities_are_few_rising_and_never_everything():
    assert packed.capacities(2048) == (128, 256, 512, 1024)
    assert packed.capacities(64) == (8, 16, 32)
    for blocks in range(1, 40):
        sizes = packed.capacities(blocks)
        assert list(sizes) == sorted(set(sizes))
        assert len(sizes) <= len(packed.CAPACITIES)
        assert all(0 < size <= max(1, blocks) for size in sizes)


@pytest.mark.parametrize("recompute", [True, False])
def test_every_number_of_fired_blocks(recompute):
    """Below, at and above each capacity, and more than the largest: nothing is ever lost."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((4, 8, 8, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, 4)) / 5, jnp.float32)
    conv = Conv.make(x.shape, kernel.shape)
    base = jnp.asarray(rng.standard_normal((4, 8, 8, 4)), jnp.float32)
    run = [
        jax.jit(
            functools.partial(
                masked_conv, conv=conv, block=2, recompute=recompute, implementation=implementation
            )
        )
        for implementation in ("packed", "dense")
    ]
    sizes = packed.capacities(64)
    for count in sorted({0, 1, 64, *sizes, *(n + 1 for n in sizes)}):
        mask = np.zeros(64, np.float32)
        mask[rng.permutation(64)[:count]] = 1
        mask = jnp.asarray(mask.reshape(4, 4, 4))
        got, expected = (f(x, kernel, None, base, mask) for f in run)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_the_choice_stays_a_branch_under_vmap():
    """A mapped branch would become a select that computes every capacity."""
    conv = Conv.make((1, 16, 16, 3), (3, 3, 3, 4))
    shapes = [(5, 1, 16, 16, 3), (5, 1, 16, 16, 4), (5, 1, 4, 4)]
    x, base, mask = (jnp.ones(shape) for shape in shapes)
    kernel = jnp.ones((3, 3, 3, 4))

    def one(x, base, mask):
        return masked_conv(
            x, kernel, None, base, mask, conv=conv, block=4, recompute=True, implementation="packed"
        )

    text = jax.jit(jax.vmap(one)).lower(x, base, mask).as_text()
    assert text.count("stablehlo.case") == 1
