"""A quantised file as a plan: in integers, lossless at threshold 0, refused where it can't be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import skipconv_jax as skipconv
from skipconv_jax import macs, native, onnx
from skipconv_jax.ops import POLICIES, InputNormGate
from skipconv_jax.plans.compile import compile_plan
from tests.quantised.files import frames, quantised_file


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    return onnx.load(quantised_file(tmp_path_factory.mktemp("net"), per_channel=True))


def _plan(network, threshold, policy, **options):
    variables, fn = network
    gate = InputNormGate(threshold, block=4)
    net = skipconv.skip(fn, gate=gate, policy=POLICIES[policy]())
    x = jax.ShapeDtypeStruct((2, 3, 12, 16), np.float32)
    params, _ = net.init(variables, x)
    return compile_plan(net, params, x, engine="folded", **options)


@pytest.fixture(scope="module")
def dense(network):
    plan = _plan(network, 0.0, "closed_loop")
    state = plan.init_state()

    def of(x):
        y, _, _ = plan.apply(plan.reset(state), x)
        return y

    return jax.jit(of)


@pytest.mark.parametrize("policy", ["closed_loop", "previous"])
def test_threshold_zero_is_lossless_with_resets(network, dense, policy):
    plan = _plan(network, 0.0, policy)
    state = plan.init_state()
    rng = np.random.default_rng(0)
    spent = []
    for t, x in enumerate(frames(8)):
        # Noise far below a step, of each stream its own.
        both = np.concatenate([x, x]) + rng.normal(size=(2, 3, 12, 16)) * 1e-6
        both = jnp.asarray(both, jnp.float32)
        if t == 4:
            state = plan.reset(state, jnp.array([False, True]))
        y, state, masks = plan.step(state, both)
        np.testing.assert_array_equal(y, dense(both))
        spent.append(np.asarray(macs.spent_total(plan.table, plan.fired(masks))))
    total = plan.table.macs
    assert (spent[0] == total).all()
    assert spent[4][1] == total
    assert (np.array(spent)[[1, 2, 3, 5, 6, 7]] < total).all()


def test_states_are_a_quarter_of_the_float_ones(network):
    small, wide = _plan(network, 0.0, "closed_loop"), _plan(network, 0.0, "closed_loop",
                                                            precision="float32")  # fmt: skip
    assert small.state_bytes() < 0.3 * wide.state_bytes()
    kinds = {a.dtype.name for a in jax.tree.leaves(small.init_state())}
    assert kinds == {"int8", "float32", "bool"}
    assert "6 convolutions of int8" in small.report()
    assert "int8" not in wide.report()


def test_the_first_layer_says_how_much_would_fire(network):
    plan = _plan(network, 0.0, "closed_loop")
    first, state = plan.first_layer(), plan.init_state()
    clip = [jnp.asarray(np.concatenate([x, x]), jnp.float32) for x in frames(2)]
    assert (np.asarray(first.firing((), state, clip[0], plan.constants)) == 1).all()
    _, state, _ = plan.step(state, clip[0])
    assert (np.asarray(first.firing((), state, clip[0], plan.constants)) == 0).all()
    assert (np.asarray(first.firing((), state, clip[1], plan.constants)) > 0).all()


def test_thresholds_change_without_compiling_anew(network):
    plan = _plan(network, 0.0, "closed_loop")
    high = {name: {"threshold": jnp.float32(1e9)} for name in plan.params["gates"]}
    state = plan.init_state()
    first, second = (jnp.asarray(np.concatenate([x, x]), jnp.float32) for x in frames(2))
    y, state, _ = plan.step(state, first)
    still, _, masks = plan.step(state, second, plan.with_gates(high))
    np.testing.assert_array_equal(still, y)
    assert all(float(m.sum()) == 0 for m in plan.fired(masks).values())


@pytest.mark.parametrize("engine", ["folded", "auto"])
def test_frames_as_cameras_give_them_enter_the_integers(network, engine):
    """Bytes, channels last, turned and shifted by a preset: all convolutions stay int8."""
    variables, fn = network

    def prepared(v, x):
        return fn(v, x[..., ::-1].astype(jnp.float32).transpose(0, 3, 1, 2) / 64 - 2)

    net = skipconv.skip(prepared, gate=InputNormGate(0.0, block=4))
    x = jax.ShapeDtypeStruct((1, 12, 16, 3), np.uint8)
    params, _ = net.init(variables, x)
    plan = compile_plan(net, params, x, engine=engine, precision="int8")
    assert plan.engine == ("native" if engine == "auto" and native.available() else "folded")
    assert "6 convolutions of int8" in plan.report()
    rng = np.random.default_rng(1)
    shown, state = rng.integers(0, 256, (1, 12, 16, 3)).astype(np.uint8), plan.init_state()
    y, state, _ = plan.step(state, jnp.asarray(shown))
    again, state, masks = plan.step(state, jnp.asarray(shown))
    np.testing.assert_array_equal(again, y)
    assert all(float(m.sum()) == 0 for m in plan.fired(masks).values())
    assert np.isfinite(np.asarray(y)).all()


def test_precision_is_asked_for_by_name(network):
    with pytest.raises(ValueError, match=r"`precision` \(='int4'\) must be one of"):
        _plan(network, 0.0, "closed_loop", precision="int4")
    variables, fn = network
    net = skipconv.skip(fn, gate=InputNormGate(0.0))
    x = jax.ShapeDtypeStruct((1, 3, 12, 16), np.float32)
    params, _ = net.init(variables, x)
    with pytest.raises(ValueError, match="engine='folded'"):
        compile_plan(net, params, x, engine="plain", precision="int8")


def test_int8_of_a_float_network_says_what_to_do():
    def fn(v, x):
        return jax.lax.conv_general_dilated(
            x, v["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    net = skipconv.skip(fn, gate=InputNormGate(0.0))
    x, v = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32), {"w": jnp.ones((3, 3, 3, 4))}
    params, _ = net.init(v, x)
    with pytest.raises(ValueError, match=r"`precision` \(='int8'\) needs a quantised network"):
        compile_plan(net, params, x, engine="folded", precision="int8")
