"""Kernels lowered for their chips ahead of time, on a machine that has none."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import export

from skipconv_jax import Rule, skip
from skipconv_jax.ops import InputNormGate
from skipconv_jax.ops.masked_conv import Epilogue, masked_conv
from skipconv_jax.ops.masked_conv.pallas import gpu_compat
from tests.ops.masked_conv.contract import drawn

LOWERED = {
    "3x3": ({}, jnp.float32),
    "3x3, bfloat16": ({}, jnp.bfloat16),
    "3x3, stride 2, added": ({"strides": 2, "recompute": False}, jnp.bfloat16),
    "7x7, dilated": ({"k": 7, "dilation": 2}, jnp.float32),
}


@pytest.mark.parametrize(("case", "dtype"), LOWERED.values(), ids=LOWERED)
@pytest.mark.parametrize(
    ("platform", "call"), [("tpu", "tpu_custom_call"), ("cuda", "mosaic_gpu")], ids=["tpu", "cuda"]
)
def test_lowers_for_its_chip(platform, call, case, dtype):
    keywords, arrays = drawn(spatial=(64, 64), ci=32, co=64, **case)
    x, kernel, bias, base, mask = arrays
    epilogue = Epilogue(bias, bias, base, "swish") if keywords["recompute"] else None
    name = {"tpu": "pallas_tpu", "cuda": "pallas_gpu"}[platform]
    step = functools.partial(masked_conv, **keywords, implementation=name, epilogue=epilogue)
    with gpu_compat.exporting():
        lowered = export.export(jax.jit(step, donate_argnums=3), platforms=[platform])(
            x.astype(dtype), kernel.astype(dtype), bias, base, mask
        )
    assert call in lowered.mlir_module()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_whole_clip_of_many_streams_lowers_as_one_step(platform):
    implementation = {"tpu": "pallas_tpu", "cuda": "pallas_gpu"}[platform]

    def network(variables, x):
        for kernel in variables:
            x = jax.nn.relu(
                jax.lax.conv_general_dilated(
                    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
            )
        return x

    # Layers of equal shapes are one function of the lowered module.
    variables = [jnp.ones((3, 3, 32, 32)), jnp.ones((3, 3, 32, 64))]
    rule = Rule(InputNormGate(0.1, block=8), implementation=implementation)
    net = skip(network, [("*", rule)])
    clip = jnp.zeros((3, 32, 16, 16, 32))
    params, state = net.init(variables, clip[0])

    @functools.partial(jax.jit, donate_argnums=0)
    def serve(state, clip, resets):
        def frame(state, inputs):
            x, reset = inputs
            y, state = net.apply(params, net.reset(state, reset), x)
            return state, y

        return jax.lax.scan(frame, state, (clip, resets))

    with gpu_compat.exporting():
        text = export.export(serve, platforms=[platform])(
            state, clip, jnp.zeros((3, 32), bool)
        ).mlir_module()
    assert text.count("tpu_custom_call" if platform == "tpu" else "mosaic_gpu") >= 2
