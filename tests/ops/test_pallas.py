"""The Pallas kernels beyond the common suite: interpreted on the CPU, and lowered for their chips.

Interpreting checks the arithmetic, the windows and the masks; lowering checks that the chip's
compiler front end takes the kernel. Neither runs on hardware: `tests/gpu` does, where there is one.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from skipconv_jax import Rule, skip
from skipconv_jax.ops import (
    ClosedLoop,
    Conv,
    InputNormGate,
    Previous,
    init_state,
    skip_conv,
)
from skipconv_jax.ops import (
    masked_conv as conv,
)
from skipconv_jax.ops.masked_conv import masked_conv, pallas_gpu, pallas_gpu_compat, pallas_tpu
from skipconv_jax.ops.masked_conv.epilogue import Epilogue
from skipconv_jax.ops.masked_conv.problem import Problem

TOLERANCE = 2e-5


def problem(
    spatial=(16, 16),
    ci=8,
    co=8,
    k=3,
    streams=2,
    block=8,
    recompute=True,
    seed=0,
    share=0.5,
    **geometry,
):
    """Geometry keywords of `masked_conv` and its arrays, outputs of about unit variance."""
    rng = np.random.default_rng(seed)
    groups = geometry.get("groups", 1)
    kernel_shape = (k, k, ci // groups, co)
    made = Conv.make((streams, *spatial, ci), kernel_shape, **geometry)
    out = (streams, *made.out_spatial, co)
    mask = (rng.random((streams, *made.grid(block))) < share).astype(np.float32)
    arrays = (
        rng.standard_normal((streams, *spatial, ci), np.float32),
        rng.standard_normal(kernel_shape, np.float32) / np.sqrt(np.prod(kernel_shape[:-1])),
        rng.standard_normal(co, np.float32),
        rng.standard_normal(out, np.float32),
        mask,
    )
    arrays = tuple(jnp.asarray(a, jnp.float32) for a in arrays)
    return {"conv": made, "block": block, "recompute": recompute}, arrays


def check(implementation, keywords, arrays, tolerance=TOLERANCE, epilogue=None):
    """Against `reference`, and bitwise `base` where the mask is 0."""
    keywords = keywords | {"epilogue": epilogue}
    expected = masked_conv(*arrays, **keywords, implementation="reference")
    got = jax.jit(functools.partial(masked_conv, **keywords, implementation=implementation))(
        *arrays
    )
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    *_, base, mask = arrays
    for axis, n in enumerate(base.shape[1:3], start=1):
        mask = jnp.repeat(mask, keywords["block"], axis=axis).take(np.arange(n), axis=axis)
    kept = np.broadcast_to(np.asarray(mask)[..., None] == 0, base.shape)
    np.testing.assert_array_equal(np.asarray(got)[kept], np.asarray(base)[kept])


TPU_CASES = {
    "added to": {"recompute": False},
    "nothing fires": {"share": 0.0},
    "ragged, stride 2": {"spatial": (13, 19), "strides": 2, "block": 4, "recompute": False},
    "1x1": {"k": 1, "block": 4, "spatial": (8, 8)},
    "5x5, dilated": {"k": 5, "dilation": 2, "streams": 1, "block": 4},
    "7x7, stride 2": {"k": 7, "strides": 2, "ci": 3, "streams": 1},
    "depthwise": {"groups": 8, "block": 4},
    "depthwise, stride 2, dilated": {"groups": 8, "strides": 2, "dilation": 2, "streams": 1},
}


@pytest.mark.parametrize("case", TPU_CASES.values(), ids=TPU_CASES)
def test_tpu_kernel_equals_reference(case):
    check("pallas_tpu", *problem(**case))


GPU_CASES = {
    "added to, ragged": {"spatial": (13, 9), "streams": 1, "share": 0.7, "recompute": False},
    "nothing fires": {"share": 0.0, "streams": 1},
    "5x5, stride 2, blocks of 16": {"k": 5, "strides": 2, "block": 16, "streams": 1},
}


@pytest.mark.parametrize("case", GPU_CASES.values(), ids=GPU_CASES)
def test_gpu_kernel_equals_reference(case):
    check("pallas_gpu", *problem(**case))


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu", "packed", "blocks"])
def test_blocks_that_do_not_fire_are_not_read(implementation):
    """Poison in their input and in their residual reaches nothing."""
    keywords, (x, kernel, bias, base, mask) = problem(k=1, seed=3, share=0.4)
    assert 0 < float(mask.mean()) <= 0.5
    quiet = jnp.repeat(jnp.repeat(mask, 8, 1), 8, 2)[..., None] == 0
    poisoned, residual = (jnp.where(quiet, jnp.nan, a) for a in (x, base))
    run = functools.partial(masked_conv, **keywords)
    epilogue = Epilogue(bias, bias, residual, "relu")
    got = run(poisoned, kernel, bias, base, mask, implementation=implementation, epilogue=epilogue)
    epilogue = Epilogue(bias, bias, base, "relu")
    expected = run(x, kernel, bias, base, mask, implementation="reference", epilogue=epilogue)
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu", "packed"])
@pytest.mark.parametrize("operand", [jnp.bfloat16, jnp.float32])
def test_bfloat16_kernels_accumulate_in_float32(implementation, operand):
    keywords, (x, kernel, *rest) = problem(spatial=(8, 8), ci=16, streams=1, share=1.0)
    # A float32 operand stands for the residual of bfloat16 frames: split, not rounded.
    check(implementation, keywords, (x.astype(operand), kernel.astype(jnp.bfloat16), *rest))


@pytest.mark.parametrize(
    ("implementation", "activation"),
    [*((name, "relu") for name in conv.IMPLEMENTATIONS), ("packed", "swish"), ("blocks", "swish")],
)
def test_epilogue(implementation, activation):
    keywords, arrays = problem(spatial=(11, 8), streams=1, share=0.7)
    bias, base = arrays[2], arrays[3]
    epilogue = Epilogue(1 + bias / 4, bias[::-1], jnp.flip(base, 1), activation)
    try:
        got = masked_conv(*arrays, **keywords, implementation=implementation, epilogue=epilogue)
    except NotImplementedError as error:
        if not str(error).startswith(f"{implementation}:"):
            raise
        pytest.skip(str(error))
    z = keywords["conv"](*arrays[:2]) + bias[None, None, None]
    y = z * (1 + bias / 4)[None, None, None] + bias[::-1][None, None, None] + jnp.flip(base, 1)
    y = jnp.maximum(y, 0.0) if activation == "relu" else y * jax.nn.sigmoid(y)
    fired = jnp.repeat(jnp.repeat(arrays[4], 8, 1)[:, :11], 8, 2)[:, :, :8, None]
    np.testing.assert_allclose(got, jnp.where(fired > 0, y, base), rtol=1e-4, atol=1e-4)


def test_epilogue_refuses_outputs_that_are_added_to():
    keywords, arrays = problem(recompute=False)
    with pytest.raises(ValueError, match="`epilogue` must be None with `recompute=False`"):
        masked_conv(*arrays, **keywords, epilogue=Epilogue(arrays[2], arrays[2]))
    with pytest.raises(ValueError, match="`activation`"):
        Epilogue(arrays[2], arrays[2], activation="gelu")


@pytest.mark.parametrize("implementation", ["packed", "pallas_tpu", "pallas_gpu"])
def test_gradients_are_the_dense_ones(implementation):
    keywords, arrays = problem(spatial=(9, 8), streams=1)
    epilogue = Epilogue(arrays[2] + 2, arrays[2], arrays[3], "swish")

    def loss(implementation, arrays, epilogue):
        z = masked_conv(*arrays, **keywords, implementation=implementation, epilogue=epilogue)
        return (z * jnp.cos(z)).sum()

    grad = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
    chosen, dense = (grad(i, arrays, epilogue) for i in (implementation, "reference"))
    for got, expected in zip(jax.tree.leaves(chosen), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("implementation", ["packed", "pallas_tpu", "pallas_gpu"])
def test_vmap_over_streams_is_a_larger_batch(implementation):
    keywords, (x, kernel, bias, base, mask) = problem(spatial=(8, 8), streams=3, share=0.6)
    run = functools.partial(masked_conv, **keywords, implementation=implementation)
    expected = run(x, kernel, bias, base, mask)
    alone = jax.vmap(lambda x, base, mask: run(x[None], kernel, bias, base[None], mask[None])[0])
    np.testing.assert_allclose(alone(x, base, mask), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_vmap_over_kernels_and_over_one_array_only():
    keywords, (x, kernel, bias, base, mask) = problem(spatial=(8, 8), streams=1, share=1.0)
    run = functools.partial(masked_conv, **keywords, implementation="pallas_tpu")
    kernels = jnp.stack([kernel, 2 * kernel])
    got = jax.vmap(lambda k: run(x, k, None, base, mask))(kernels)
    np.testing.assert_allclose(got[1], 2 * got[0], rtol=1e-4, atol=1e-4)
    bases = jnp.stack([base, base + 1])
    got = jax.vmap(lambda b: run(x, kernel, bias, b, jnp.zeros_like(mask)))(bases)
    np.testing.assert_array_equal(got, bases)


@pytest.mark.parametrize("policy", [Previous(), ClosedLoop()], ids=["added", "recomputed"])
@pytest.mark.parametrize("implementation", ["packed", "pallas_tpu"])
def test_streams_in_one_batch_are_independent_and_reset_alone(implementation, policy):
    rng = np.random.default_rng(3)
    params = {"kernel": jnp.asarray(rng.standard_normal((3, 3, 4, 8)) / 6, jnp.float32)}
    clip = rng.standard_normal((1, 3, 16, 8, 4)).repeat(4, axis=0)
    clip[1:, :, :4] += rng.standard_normal((3, 3, 4, 8, 4))
    clip = jnp.asarray(clip, jnp.float32)
    resets = jnp.asarray(rng.random((4, 3)) < 0.3)
    options = {"gate": InputNormGate(0.05, block=4), "policy": policy}

    def scan(clip, resets, implementation):
        def step(state, frame):
            x, reset = frame
            z, state = skip_conv(
                params, state.reset(reset), x, **options, implementation=implementation
            )
            return state, (z, state.fired)

        return jax.lax.scan(step, init_state(params, clip[0], **options), (clip, resets))[1]

    scan = jax.jit(scan, static_argnums=2)
    together, fired = scan(clip, resets, implementation)
    assert 0 < float(fired[1:].mean()) < 1
    for s in range(3):
        one, fired_one = scan(clip[:, s : s + 1], resets[:, s : s + 1], "reference")
        np.testing.assert_array_equal(fired[:, s], fired_one[:, 0])
        np.testing.assert_allclose(together[:, s], one[:, 0], rtol=1e-4, atol=1e-5)


REFUSED_BY_BOTH = {
    "float16": ({}, jnp.float16),
    "negative padding": ({"padding": ((-1, 1), (1, 1))}, jnp.float32),
    "groups": ({"groups": 2}, jnp.float32),
}


@pytest.mark.parametrize("kernel", [pallas_tpu, pallas_gpu])
@pytest.mark.parametrize(("case", "dtype"), REFUSED_BY_BOTH.values(), ids=REFUSED_BY_BOTH)
def test_refused_cases_are_named(kernel, case, dtype, request):
    keywords, (x, *rest) = problem(**case)
    name = kernel.__name__.rpartition(".")[2]
    with pytest.raises(
        NotImplementedError, match=f"^{name}: .*{request.node.callspec.id.split('-')[0]}"
    ):
        masked_conv(x.astype(dtype), *rest, **keywords, implementation=name)


@pytest.mark.parametrize(
    ("case", "match"),
    [({"block": 4}, "block 4"), ({"ci": 3}, "3 input channels"), ({"co": 17}, "17 output")],
)
def test_gpu_kernel_refuses_what_tensor_cores_do_not_take(case, match):
    keywords, arrays = problem(**case)
    with pytest.raises(NotImplementedError, match=f"^pallas_gpu: {match}"):
        masked_conv(*arrays, **keywords, implementation="pallas_gpu")


def test_tpu_kernel_slices_wide_outputs_and_refuses_what_vmem_does_not_hold():
    def planned(channels, k):
        made = Conv.make((1, 16, 16, channels), (k, k, channels, channels))
        return pallas_tpu.plan(Problem(made, 8, True), jnp.float32, jnp.float32)

    assert planned(64, 3).channels == 64
    assert planned(512, 3).channels == 128
    with pytest.raises(NotImplementedError, match=r"^pallas_tpu: .* MiB of VMEM"):
        planned(2048, 7)


@pytest.mark.parametrize(
    ("platform", "case", "chosen"),
    [
        ("cpu", {}, "blocks"),
        ("tpu", {}, "pallas_tpu"),
        ("tpu", {"groups": 2}, "reference"),
        ("gpu", {}, "pallas_gpu"),
        ("gpu", {"block": 4}, "packed"),
        ("gpu", {"block": 2}, "reference"),
    ],
)
def test_dispatch_by_platform_with_fallback(monkeypatch, platform, case, chosen):
    keywords, arrays = problem(**case)
    used = []
    for name, function in list(conv._IMPLEMENTATIONS.items()):

        def spy(*args, name=name, function=function):
            out = jax.eval_shape(functools.partial(function, args[0]), *args[1:])
            used.append(name)
            return out

        monkeypatch.setitem(conv._IMPLEMENTATIONS, name, spy)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    hopper = types.SimpleNamespace(compute_capability="9.0", device_kind="H200")
    monkeypatch.setattr(jax, "devices", lambda: [hopper])
    masked_conv(*arrays, **keywords)
    assert used == [chosen]


def test_a_gpu_that_is_no_hopper_is_refused(monkeypatch):
    keywords, arrays = problem()
    ampere = types.SimpleNamespace(compute_capability="8.0", device_kind="A100")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [ampere])
    with pytest.raises(NotImplementedError, match=r"^pallas_gpu: A100 .*8\.0.* no Hopper"):
        masked_conv(*arrays, **keywords, implementation="pallas_gpu")


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
    keywords, arrays = problem(spatial=(64, 64), ci=32, co=64, **case)
    x, kernel, bias, base, mask = arrays
    epilogue = Epilogue(bias, bias, base, "swish") if keywords["recompute"] else None
    name = {"tpu": "pallas_tpu", "cuda": "pallas_gpu"}[platform]
    step = functools.partial(masked_conv, **keywords, implementation=name, epilogue=epilogue)
    with pallas_gpu_compat.exporting():
        lowered = export.export(jax.jit(step, donate_argnums=3), platforms=[platform])(
            x.astype(dtype), kernel.astype(dtype), bias, base, mask
        )
    assert call in lowered.mlir_module()


@pytest.mark.parametrize("case", [{"groups": 64, "co": 64, "ci": 64}, {"block": 4}])
def test_tpu_lowers_depthwise_and_small_blocks(case):
    keywords, arrays = problem(**{"spatial": (32, 32), "ci": 32} | case)
    step = jax.jit(functools.partial(masked_conv, **keywords, implementation="pallas_tpu"))
    assert "tpu_custom_call" in export.export(step, platforms=["tpu"])(*arrays).mlir_module()


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

    variables = [jnp.ones((3, 3, 32, 32))] * 2
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

    with pallas_gpu_compat.exporting():
        text = export.export(serve, platforms=[platform])(
            state, clip, jnp.zeros((3, 32), bool)
        ).mlir_module()
    assert text.count("tpu_custom_call" if platform == "tpu" else "mosaic_gpu") >= 2
