"""Quantised networks on the native engine: equal to the folded plan in JAX to the bit."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import skipconv_jax as skipconv
from skipconv_jax import macs, native, onnx
from skipconv_jax.native import build, library
from skipconv_jax.native.byte_builder import ByteBuilder, ByteConvSpec
from skipconv_jax.native.lower_quantised import raw_grid
from skipconv_jax.native.specs import ConvSpec, GateSpec
from skipconv_jax.ops import ClosedLoop, Conv, InputNormGate, OutputNormGate, Previous
from skipconv_jax.ops import quantised as q
from skipconv_jax.plans import compile_plan
from tests.quantised.files import frames, quantised_file

pytestmark = pytest.mark.skipif(not native.available(), reason=native.status())
KINDS = {"uint8": "QUInt8", "int8": "QInt8"}


def _net(path, gate):
    variables, fn = onnx.load(path)
    net = skipconv.skip(fn, gate=gate, policy=ClosedLoop())
    x = jax.ShapeDtypeStruct((2, 3, 12, 16), np.float32)
    return net, net.init(variables, x)[0], x


@pytest.fixture(scope="module", params=KINDS)
def path(request, tmp_path_factory):
    quantization = pytest.importorskip("onnxruntime.quantization")
    kind = getattr(quantization.QuantType, KINDS[request.param])
    folder = tmp_path_factory.mktemp("net")
    return quantised_file(folder, per_channel=True, activation_type=kind)


@pytest.fixture(scope="module")
def plans(path):
    net, params, x = _net(path, InputNormGate(0.02, block=4))
    return [compile_plan(net, params, x, engine=e, precision="int8") for e in ("native", "folded")]


def _stream(count, noise=1e-6):
    """Two streams of one scene, with noise of their own."""
    rng = np.random.default_rng(7)
    for x in frames(count):
        yield (np.concatenate([x, x]) + rng.normal(size=(2, 3, 12, 16)) * noise).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.3])
def test_values_and_masks_are_those_of_the_folded_plan(plans, threshold):
    constants = [
        p.with_gates({name: {"threshold": jnp.float32(threshold)} for name in plans[1].layers})
        for p in plans
    ]
    states = [p.init_state() for p in plans]
    spent = []
    for t, x in enumerate(_stream(8)):
        if t == 4:
            one = jnp.array([False, True])
            states = [p.reset(s, one) for p, s in zip(plans, states, strict=True)]
        made = [p.step(s, x, c) for p, s, c in zip(plans, states, constants, strict=True)]
        states = [m[1] for m in made]
        np.testing.assert_array_equal(made[0][0], made[1][0], err_msg=f"frame {t}")
        fired = [p.fired(m[2]) for p, m in zip(plans, made, strict=True)]
        assert sorted(fired[0]) == sorted(fired[1])
        for name, mask in fired[0].items():
            np.testing.assert_array_equal(mask, fired[1][name], err_msg=f"{name}, frame {t}")
        spent.append(np.asarray(macs.spent_total(plans[0].table, fired[0])))
    assert spent[1].max() < plans[0].table.macs
    assert spent[4][1] == plans[0].table.macs


def test_threshold_zero_is_lossless_over_a_looped_noisy_stream_with_resets(plans):
    plan = plans[0]
    lossless = plan.with_gates({n: {"threshold": jnp.float32(0)} for n in plan.layers})
    state, fresh = plan.init_state(), plan.init_state()
    clip = list(_stream(20, noise=1e-4))
    rng, saved = np.random.default_rng(1), 0
    for t in range(60):
        if t % 17 == 16:
            state = plan.reset(state, jnp.asarray(rng.random(2) < 0.5))
        y, state, masks = plan.step(state, clip[t % 20], lossless)
        dense, fresh, _ = plan.step(plan.reset(fresh), clip[t % 20], lossless)
        np.testing.assert_array_equal(y, dense, err_msg=f"frame {t}")
        saved += sum(int((np.asarray(m) == 0).sum()) for m in plan.fired(masks).values())
    assert saved > 0


def test_all_of_it_is_one_call_and_a_quarter_of_the_state(path, plans):
    net, params, x = _net(path, InputNormGate(0.02, block=4))
    wide = compile_plan(net, params, x, engine="native", precision="float32")
    assert "in 1 native call(s)" in plans[0].report()
    assert plans[0].state_bytes() < 0.4 * wide.state_bytes()  # maps of change are a share here


@pytest.mark.parametrize("gate", [OutputNormGate(0.05, block=8, reduction="sum")])
def test_an_output_norm_fires_as_in_jax(path, gate):
    net, params, x = _net(path, gate)
    two = [compile_plan(net, params, x, engine=e, precision="int8") for e in ("native", "folded")]
    states = [p.init_state() for p in two]
    for frame in _stream(4, noise=0.01):
        made = [p.step(s, frame) for p, s in zip(two, states, strict=True)]
        states = [m[1] for m in made]
        np.testing.assert_array_equal(made[0][0], made[1][0])
        for name, mask in two[0].fired(made[0][2]).items():
            np.testing.assert_array_equal(mask, two[1].fired(made[1][2])[name], err_msg=name)


def test_what_it_has_no_kernel_for_goes_to_the_folded_plan(path):
    variables, fn = onnx.load(path)
    net = skipconv.skip(fn, gate=InputNormGate(0.1), policy=Previous())
    x = jax.ShapeDtypeStruct((2, 3, 12, 16), np.float32)
    params = net.init(variables, x)[0]
    with pytest.raises(ValueError, match="no int8 kernel for the policy"):
        compile_plan(net, params, x, engine="native", precision="int8")
    plan = compile_plan(net, params, x, precision="int8")
    assert plan.engine == "folded"
    assert "no int8 kernel" in plan.why


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx_vnni", "avx512", "avx512_vnni"])
def test_every_instruction_set_gives_the_same_bytes(isa, tmp_path):
    if isa not in build.int8_variants():
        pytest.skip(f"{isa} is not of this machine's architecture")
    out = tmp_path / "made.npy"
    root = str(pathlib.Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(out)],
        env={**os.environ, "SKIPCONV_JAX_ISA": isa, "PYTHONPATH": root},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    if done.stdout.split()[-1] != isa:
        pytest.skip(f"this CPU lacks {isa}")
    np.testing.assert_array_equal(np.load(out), _chain())


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    channels=st.sampled_from([1, 3, 4, 7, 16, 20]),
    out=st.integers(1, 5),
    window=st.sampled_from([(1, 1), (3, 3), (5, 5), (2, 3)]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    groups=st.sampled_from(["one", "two", "all"]),
    zero=st.sampled_from([0, 1, 131, 255]),
    signed=st.booleans(),
    loud=st.sampled_from([1e-4, 3e-3, 1.0]),
    table=st.booleans(),
    seed=st.integers(0, 999),
)
def test_a_convolution_of_any_geometry_equals_jax(
    size, channels, out, window, stride, dilation, groups, zero, signed, loud, table, seed
):
    rng = np.random.default_rng(seed)
    split = {"one": 1, "two": 2 if channels % 2 == 0 else 1, "all": channels}[groups]
    co = channels if groups == "all" else out * split
    kernel = rng.integers(-128, 128, (*window, channels // split, co)).astype(np.int8)
    pads = [(int(rng.integers(0, 4)), int(rng.integers(0, 4)) + (k - 1) * dilation) for k in window]
    conv = Conv.make(
        (1, *size, channels), kernel.shape, strides=stride, groups=split, padding=pads,
        dilation=dilation,
    )  # fmt: skip
    grid = q.Grid(0.05, zero - 128 if signed else zero, "int8" if signed else "uint8")
    finish = q.Finish.on(q.Grid(0.1, 7, "int8"), lo=-100.0)
    if table:
        finish = finish.then(rng.permutation(256).astype(np.uint8))
    bias = rng.integers(-3000, 3000, co).astype(np.int32)
    multiplier = (rng.normal(size=co) * loud).astype(np.float32)
    x = (rng.normal(size=(1, *size, channels)) * rng.choice([1, 30])).astype(np.float32)

    bytes_in = q.quantize(jnp.asarray(x), grid)
    steps = bytes_in.astype(jnp.int32) - grid.zero
    acc = q.int_conv(steps, kernel, conv)
    acc = acc + bias.reshape(1, 1, 1, -1)
    want = q.scaled(acc, multiplier.reshape(1, 1, 1, -1), finish)

    builder = ByteBuilder()
    raw = channels <= 4 and split == 1
    entered = builder.byte_input(*size, channels, grid, raw=raw)
    spec = ConvSpec(
        kernel, None, "c", strides=conv.strides, padding=conv.padding, dilation=conv.dilation,
        groups=split, policy="closed_loop", gate=GateSpec("norm", [0.0], 4),
    )  # fmt: skip
    made = builder.byte_conv(
        entered, ByteConvSpec(spec, grid.zero, grid.dtype, bias, multiplier, finish)
    )
    builder.mixed_output((made, raw_grid(finish.dtype)))
    program = builder.finish()
    (y,), _, _ = program.apply(program.constants, program.init_state(1), jnp.asarray(x))
    np.testing.assert_array_equal(y, np.asarray(want, np.float32))


def _chain():
    """A dense, a depthwise and a pointwise convolution with a table, over two frames."""
    rng = np.random.default_rng(5)
    builder, finish = ByteBuilder(), q.Finish.on(q.Grid(0.1, 120, "uint8"))
    x = builder.byte_input(11, 13, 3, q.Grid(0.02, 128, "uint8"), raw=True)
    for name, shape, groups in [("a", (3, 3, 3, 40), 1), ("b", (5, 5, 1, 40), 40),
                                ("c", (1, 1, 40, 20), 1)]:  # fmt: skip
        kernel = rng.integers(-128, 128, shape).astype(np.int8)
        pads = [(n // 2, n // 2) for n in shape[:2]]
        spec = ConvSpec(
            kernel, None, name, padding=pads, groups=groups, policy="closed_loop",
            gate=GateSpec("norm", [0.0], 4),
        )  # fmt: skip
        multiplier = rng.uniform(1e-3, 5e-3, shape[3]).astype(np.float32)
        bias = rng.integers(-3000, 3000, shape[3]).astype(np.int32)
        out = finish.then(rng.permutation(256).astype(np.uint8)) if name == "c" else finish
        x = builder.byte_conv(x, ByteConvSpec(spec, 120, "uint8", bias, multiplier, out))
    builder.mixed_output((x, raw_grid("uint8")))
    program = builder.finish()
    state, made = program.init_state(1), []
    frame = rng.normal(size=(1, 11, 13, 3)).astype(np.float32)
    for _ in range(2):
        (y,), state, masks = program.apply(program.constants, state, jnp.asarray(frame))
        made += [np.ravel(y), np.ravel(masks)]
        frame[:, 2:5, 3:6] += 0.5
    return np.concatenate(made)


if __name__ == "__main__":
    np.save(sys.argv[1], _chain())
    print(library.int8_isa())
