"""The TPU kernel: interpreted on the CPU, and lowered for its chip.

Interpreting checks the arithmetic, the windows and the masks; lowering checks that the chip's
compiler front end takes the kernel. Neither runs on hardware: `tests/gpu` does, where there is one.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from skipconv_jax.ops import Conv
from skipconv_jax.ops.masked_conv import masked_conv, why_unsupported
from skipconv_jax.ops.masked_conv.pallas import tpu
from tests.ops.cases import named
from tests.ops.masked_conv.contract import (
    AcceleratorContract,
    StreamsContract,
    check,
    drawn,
    posed,
)

CASES = {
    "added to": {"recompute": False},
    "nothing fires": {"share": 0.0},
    "ragged, stride 2": {"spatial": (13, 19), "strides": 2, "block": 4, "recompute": False},
    "1x1": {"k": 1, "block": 4, "spatial": (8, 8)},
    "5x5, dilated": {"k": 5, "dilation": 2, "streams": 1, "block": 4},
    "7x7, stride 2": {"k": 7, "strides": 2, "ci": 3, "streams": 1},
    "depthwise": {"groups": 8, "block": 4},
    "depthwise, stride 2, dilated": {"groups": 8, "strides": 2, "dilation": 2, "streams": 1},
}


class TestPallasTpu(AcceleratorContract, StreamsContract):
    """Interpreted, hence few cases."""

    implementation = "pallas_tpu"
    cases = tuple(named("plain", "stride-two-torch", "depthwise"))

    @pytest.mark.parametrize("drawing", CASES.values(), ids=CASES)
    def test_equals_the_dense_one(self, drawing):
        check(self.implementation, *drawn(**drawing))


def test_vmap_over_kernels_and_over_one_array_only():
    keywords, (x, kernel, bias, base, mask) = drawn(spatial=(8, 8), streams=1, share=1.0)
    run = functools.partial(masked_conv, **keywords, implementation="pallas_tpu")
    kernels = jnp.stack([kernel, 2 * kernel])
    got = jax.vmap(lambda k: run(x, k, None, base, mask))(kernels)
    np.testing.assert_allclose(got[1], 2 * got[0], rtol=1e-4, atol=1e-4)
    bases = jnp.stack([base, base + 1])
    got = jax.vmap(lambda b: run(x, kernel, bias, b, jnp.zeros_like(mask)))(bases)
    np.testing.assert_array_equal(got, bases)


def test_wide_outputs_are_sliced_and_what_vmem_does_not_hold_is_refused():
    def of(channels, k):
        made = Conv.make((1, 16, 16, channels), (k, k, channels, channels))
        return dataclasses.replace(posed(*drawn(spatial=(8, 8), streams=1)), conv=made)

    assert tpu.plan(of(64, 3)).channels == 64
    assert tpu.plan(of(512, 3)).channels == 128
    assert " MiB of VMEM" in why_unsupported("pallas_tpu", of(2048, 7))


@pytest.mark.parametrize("case", [{"groups": 64, "co": 64, "ci": 64}, {"block": 4}])
def test_depthwise_and_small_blocks_lower(case):
    keywords, arrays = drawn(**{"spatial": (32, 32), "ci": 32} | case)
    step = jax.jit(functools.partial(masked_conv, **keywords, implementation="pallas_tpu"))
    assert "tpu_custom_call" in export.export(step, platforms=["tpu"])(*arrays).mlir_module()
