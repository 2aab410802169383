"""A compiled plan gives the outputs and masks of `net.apply`."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import native, skip
from skipconv_jax.models.layers import upsample_nearest
from skipconv_jax.ops import (
    Accumulate,
    AlwaysGate,
    ClosedLoop,
    GumbelGate,
    InputNormGate,
    Keyframe,
    OutputNormGate,
    Previous,
)
from skipconv_jax.plans import compile_plan
from skipconv_jax.plans.native import NativePlan
from skipconv_jax.program import fold as graph

pytestmark = pytest.mark.skipif(not native.available(), reason="the native engine is not built")


class _Net(nn.Module):
    """Residual block, squeeze-excite, depthwise, pooling, concatenation, a shared kernel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.swish(nn.Conv(16, (3, 3), strides=2)(x))
        y = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(16, (3, 3), use_bias=False)(x)))
        x = nn.relu(nn.Conv(16, (3, 3))(y) + x)
        d = nn.relu6(nn.Conv(16, (5, 5), feature_group_count=16)(x))
        squeezed = nn.swish(nn.Conv(4, (1, 1))(d.mean(axis=(1, 2), keepdims=True)))
        d = d * nn.sigmoid(nn.Conv(16, (1, 1))(squeezed))
        shared = nn.Conv(16, (1, 1))
        d = shared(shared(d))
        pooled = nn.max_pool(d, (3, 3), (2, 2), ((1, 1), (1, 1)))
        halved = nn.pooling.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4.0
        joined = jnp.concatenate([halved, pooled], axis=-1)
        return joined, d


def _clip(shape: tuple[int, ...], frames: int) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    clip = [x]
    for t in range(frames - 1):
        x = x.copy()
        if t != 1:
            y0, x0 = rng.integers(0, shape[1] - 8), rng.integers(0, shape[2] - 8)
            patch = x[:, y0 : y0 + 8, x0 : x0 + 8]
            patch += rng.normal(size=patch.shape).astype(np.float32) * np.float32(0.3)
        clip.append(x)
    return [jnp.asarray(f) for f in clip]


@pytest.fixture(scope="module")
def network() -> tuple[Any, Any, list[jax.Array]]:
    model, clip = _Net(), _clip((2, 32, 40, 3), 5)
    return model, model.init(jax.random.key(0), clip[0]), clip


_GATES = {
    "input": InputNormGate(3e-2, block=4),
    "output": OutputNormGate(3e-3, block=5, reduction="mean"),
    "sum": InputNormGate(5.0, block=3, reduction="sum"),
    "gumbel": GumbelGate(block=4, bias_init=-0.2),
    "gumbel of magnitudes": GumbelGate(4, bias_init=-0.2, kernel_gain=4.0, sees="magnitude"),
    "always": AlwaysGate(block=8),
}


@pytest.mark.parametrize(
    "policy", [Previous(), ClosedLoop(), Accumulate()], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("gate", list(_GATES))
def test_plan_equals_apply(network: Any, policy: Any, gate: str) -> None:
    if gate.startswith("gumbel") and isinstance(policy, Accumulate):
        pytest.skip("accumulated norms need a norm gate")
    model, variables, clip = network
    net = skip(model.apply, [("Conv_0", None)], gate=_GATES[gate], policy=policy)
    params, state = net.init(variables, clip[0], key=jax.random.key(1))
    plan = compile_plan(net, params, clip[0])
    plan_state, apply = plan.init_state(), jax.jit(net.apply)
    for frame in clip:
        y, state = apply(params, state, frame)
        got, plan_state, masks = plan.step(plan_state, frame)
        for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(got), strict=True):
            np.testing.assert_allclose(b, a, atol=3e-5 * float(jnp.abs(a).max()), rtol=0)
        fired = plan.fired(masks)
        assert set(fired) == set(state)
        for name, mask in fired.items():
            np.testing.assert_array_equal(mask, state[name].fired, err_msg=name)


def test_equations_without_a_rule_run_in_xla(network: Any) -> None:
    model, variables, clip = network

    def fn(variables: Any, x: jax.Array) -> jax.Array:
        joined, d = model.apply(variables, jnp.flip(x, axis=1))
        return jnp.sin(jnp.flip(d, axis=2)).mean(axis=(1, 2)) + joined.mean()

    net = skip(fn, gate=InputNormGate(3e-2, block=4))
    params, state = net.init(variables, clip[0])
    plan = compile_plan(net, params, clip[0])
    assert "no rule for sin" in plan.report()
    plan_state = plan.init_state()
    for frame in clip[:3]:
        y, state = net.apply(params, state, frame)
        got, plan_state, _ = plan.step(plan_state, frame)
        np.testing.assert_allclose(got, y, atol=1e-5)


def test_thresholds_change_without_compiling(network: Any) -> None:
    model, variables, clip = network
    net = skip(model.apply, gate=InputNormGate(3e-2, block=4), policy=ClosedLoop())
    params, state = net.init(variables, clip[0])
    plan = compile_plan(net, params, clip[0])
    plan_state, step, apply = plan.init_state(), jax.jit(plan.apply), jax.jit(net.apply)
    for t, frame in enumerate([*clip, clip[-1]]):
        # The last frame repeats: only the lower threshold wakes blocks.
        threshold = jnp.float32(0.3 if t < len(clip) else 1e-3)
        gates = {name: {"threshold": threshold} for name in params["gates"]}
        y, state = apply({**params, "gates": gates}, state, frame)
        got, plan_state, masks = step(plan_state, frame, plan.with_gates(gates))
        for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(got), strict=True):
            np.testing.assert_allclose(b, a, atol=3e-5 * float(jnp.abs(a).max()), rtol=0)
        for name, mask in plan.fired(masks).items():
            np.testing.assert_array_equal(mask, state[name].fired, err_msg=name)


def test_policy_without_a_kernel_is_refused(network: Any) -> None:
    model, variables, clip = network
    net = skip(model.apply, policy=Keyframe())
    params, _ = net.init(variables, clip[0])
    with pytest.raises(ValueError, match=r"net\.apply"):
        compile_plan(net, params, clip[0], engine="native")
    plan = compile_plan(net, params, clip[0])
    assert plan.engine == "plain"
    assert "no kernel for the policy Keyframe" in plan.report()


class _Detector(nn.Module):
    """What EfficientDet is made of: squeeze-excite, weighted fusion, heads shared over levels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.swish(nn.Conv(20, (3, 3), strides=2)(x))
        skip = nn.Conv(20, (1, 1))(x)
        for kernel in (3, 5):
            y = nn.swish(nn.Conv(40, (1, 1))(skip))
            y = nn.swish(nn.Conv(40, (kernel, kernel), feature_group_count=40)(y))
            s = nn.swish(nn.Conv(5, (1, 1))(y.mean(axis=(1, 2), keepdims=True)))
            s = jnp.broadcast_to(nn.sigmoid(nn.Conv(40, (1, 1))(s)), y.shape)
            skip = skip + nn.Conv(20, (1, 1))(y * s)
        low = nn.max_pool(skip, (3, 3), (2, 2), "SAME")
        low = nn.Conv(20, (5, 5), strides=2, feature_group_count=20, padding="SAME")(low)
        up = upsample_nearest(low, 4)
        edges = nn.relu(self.param("edges", nn.initializers.ones, (2,)))
        weights = edges / (edges.sum() + 1e-4)
        high = nn.swish(weights[0] * skip + weights[1] * up)
        head, box = nn.Conv(9 * 5, (1, 1)), nn.Conv(9 * 4, (1, 1))
        flat = [
            [c(m).reshape(m.shape[0], -1, n) for m in (high, low)] for c, n in ((head, 5), (box, 4))
        ]
        return jnp.concatenate(flat[0], axis=1), jnp.concatenate(flat[1], axis=1)


def _kept_and_plain(threshold: float) -> tuple[Any, Any, list[jax.Array]]:
    """Two plans of a detector whose outputs are joined from maps, one of which keeps them."""
    model, clip = _Detector(), _clip((2, 64, 48, 3), 6)
    variables = model.init(jax.random.key(0), clip[0])
    net = skip(model.apply, gate=InputNormGate(threshold, block=4))
    params, _ = net.init(variables, clip[0])
    plain, kept = (compile_plan(net, params, clip[0], keep_outputs=k) for k in (False, True))
    return plain, kept, clip


@pytest.mark.parametrize("threshold", [0.0, 3e-2, 0.2])
def test_kept_outputs_are_the_outputs(threshold: float) -> None:
    plain, kept, clip = _kept_and_plain(threshold)
    states, step = (plain.init_state(), kept.init_state()), jax.jit(kept.apply)
    inside = kept.init_state()
    for t, frame in enumerate([*clip, clip[-1]]):
        if t == 3:  # one stream starts anew
            anew = jnp.array([False, True])
            states = plain.reset(states[0], anew), kept.reset(states[1], anew)
            inside = kept.reset(inside, anew)
        y, first, masks = plain.step(states[0], frame)
        z, second, fired = kept.step(states[1], frame)
        w, inside, _ = step(inside, frame)
        states = first, second
        chex.assert_trees_all_equal(y, z, w)
        chex.assert_trees_all_equal(masks, fired)


def test_kept_outputs_stay_where_they_are_and_go_with_the_next_frame() -> None:
    _, kept, clip = _kept_and_plain(3e-2)
    y, state, _ = kept.step(kept.init_state(), clip[0])
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(y)]
    z, state, _ = kept.step(state, clip[1])
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(z)] == places
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(jax.tree.leaves(y)[0])


def test_kept_outputs_count_as_state() -> None:
    plain, kept, clip = _kept_and_plain(3e-2)
    y, _, _ = plain.step(plain.init_state(), clip[0])
    added = kept.state_bytes() - plain.state_bytes()
    assert added == sum(leaf.nbytes for leaf in jax.tree.leaves(y)) / len(clip[0])


def test_a_state_without_the_kept_outputs_is_refused() -> None:
    plain, kept, clip = _kept_and_plain(3e-2)
    with pytest.raises(ValueError, match=r"`state` \(=1 arrays\) must have 3.*keep_outputs"):
        kept.step(plain.init_state(), clip[0])
    with pytest.raises(ValueError, match=r"`state` \(=3 arrays\) must have 1"):
        plain.reset(kept.init_state())


@pytest.mark.parametrize(
    "policy", [Previous(), ClosedLoop(), Accumulate()], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("gate", ["input", "gumbel", "always"])
def test_detector_runs_as_one_native_call(policy: Any, gate: str) -> None:
    if gate == "gumbel" and isinstance(policy, Accumulate):
        pytest.skip("accumulated norms need a norm gate")
    model, clip = _Detector(), _clip((2, 64, 48, 3), 6)
    variables = model.init(jax.random.key(0), clip[0])
    net = skip(model.apply, gate=_GATES[gate], policy=policy)
    params, state = net.init(variables, clip[0], key=jax.random.key(1))
    plan = compile_plan(net, params, clip[0])
    assert isinstance(plan, NativePlan)
    assert "XLA" not in plan.report()
    assert len(plan.programs) == 1
    products = [n for n in plan.graph.nodes if isinstance(n, graph.BinaryNode)]
    assert len(products) == 2
    assert "binary" not in plan.programs[0].names
    plan_state, apply = plan.init_state(), jax.jit(net.apply)
    for frame in clip:
        y, state = apply(params, state, frame)
        got, plan_state, masks = plan.step(plan_state, frame)
        for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(got), strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(b, a, atol=3e-5 * float(jnp.abs(a).max()), rtol=0)
        for name, mask in plan.fired(masks).items():
            np.testing.assert_array_equal(mask, state[name].fired, err_msg=name)


def test_scale_goes_with_plain_pointwise_convolutions_only() -> None:
    builder = native.ProgramBuilder()
    x, s = builder.input(8, 8, 16), builder.input(1, 1, 16)
    kernel = np.zeros((3, 3, 16, 16), np.float32)
    with pytest.raises(ValueError, match="1x1"):
        builder.conv(x, native.ConvSpec(kernel, name="c", padding=((1, 1), (1, 1))), scale=s)
    with pytest.raises(ValueError, match="one value per channel"):
        builder.conv(x, native.ConvSpec(kernel[:1, :1], name="c"), scale=x)


def test_the_report_says_which_layers_are_chained() -> None:
    weights = {"a": jnp.ones((3, 3, 1, 16)), "b": jnp.ones((1, 1, 16, 8))}

    def fn(variables, x):
        dims = ("NHWC", "HWIO", "NHWC")
        for name, groups in (("a", 16), ("b", 1)):
            x = jax.lax.conv_general_dilated(
                x, variables[name], (1, 1), "SAME", None, None, dims, groups
            )
        return x

    frame = jnp.ones((1, 16, 16, 16))
    for policy, chained in ((ClosedLoop(), True), (Previous(), False)):
        net = skip(fn, gate=InputNormGate(0.1, block=8), policy=policy)
        plan = compile_plan(net, net.init(weights, frame)[0], frame, engine="native")
        assert ("1 1x1 layers computed with" in plan.report()) == chained


@pytest.mark.parametrize("channels", [3, 5])
def test_frames_channels_first_enter_the_engine_as_they_are(channels: int) -> None:
    rng = np.random.default_rng(channels)
    weights = {
        "a": jnp.asarray(rng.normal(size=(8, channels, 3, 3)) / 5, jnp.float32),
        "b": jnp.asarray(rng.normal(size=(4, 8, 1, 1)), jnp.float32),
    }

    def fn(variables, x):
        for name, pad in (("a", "SAME"), ("b", "VALID")):
            x = jax.nn.relu(jax.lax.conv_general_dilated(x, variables[name], (1, 1), pad))
        return x.mean(axis=(2, 3))

    frames = rng.normal(size=(1, 2, channels, 13, 10)).repeat(4, 0).astype(np.float32)
    frames[2:, 0, :, 4:7, 2:5] += 1
    net = skip(fn, gate=InputNormGate(0.1, block=4), policy=ClosedLoop())
    params, state = net.init(weights, jnp.asarray(frames[0]))
    plan = compile_plan(net, params, jnp.asarray(frames[0]), engine="native")
    assert "XLA" not in plan.report()
    step, ours = jax.jit(net.apply), plan.init_state()
    for t, frame in enumerate(map(jnp.asarray, frames)):
        want, state = step(params, state, frame)
        got, ours, masks = plan.step(ours, frame)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        for name, mask in plan.fired(masks).items():
            np.testing.assert_array_equal(mask, state[name].fired)
        assert (plan.fired(masks)["a"].sum() > 0) == (t in (0, 2))


@pytest.mark.parametrize("keep_outputs", [False, True])
@pytest.mark.parametrize("others", [0, 1, 2])
def test_results_channels_first_leave_the_engine_as_they_are(
    others: int, keep_outputs: bool
) -> None:
    """Unless the map is returned as well, or the turned one is read."""
    rng = np.random.default_rng(others)
    weights = {"a": jnp.asarray(rng.normal(size=(3, 3, 4, 21)) / 5, jnp.float32)}

    def fn(variables, x):
        dims = ("NHWC", "HWIO", "NHWC")
        z = jax.lax.conv_general_dilated(x, variables["a"], (1, 1), "SAME", dimension_numbers=dims)
        z = jnp.tanh(z)
        turned = jnp.transpose(z, (0, 3, 1, 2))
        return (turned, z, jnp.sort(turned, axis=1))[: 1 + others]

    frames = rng.normal(size=(1, 2, 11, 18, 4)).repeat(4, 0).astype(np.float32)
    frames[2:, 0, 4:7, 2:5] += 1
    net = skip(fn, gate=InputNormGate(0.1, block=4), policy=ClosedLoop())
    params, state = net.init(weights, jnp.asarray(frames[0]))
    plan = compile_plan(
        net, params, jnp.asarray(frames[0]), engine="native", keep_outputs=keep_outputs
    )
    assert bool(plan.leave_first) == (others == 0) == ("XLA" not in plan.report())
    step, ours = jax.jit(net.apply), plan.init_state()
    for frame in map(jnp.asarray, frames):
        want, state = step(params, state, frame)
        got, ours, _ = plan.step(ours, frame)
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_a_frame_that_is_returned_too(axes: tuple[int, ...]) -> None:
    """As it came, or turned: then it must not enter the engine alone."""
    rng = np.random.default_rng(0)
    weights = {"a": jnp.asarray(rng.normal(size=(4, 3, 1, 1)), jnp.float32)}

    def fn(variables, x):
        z = jax.lax.conv_general_dilated(x, variables["a"], (1, 1), "VALID")
        return x.transpose(axes), z

    frame = jnp.asarray(rng.normal(size=(1, 3, 9, 7)), jnp.float32)
    net = skip(fn, gate=InputNormGate(0.1, block=4))
    params, _ = net.init(weights, frame)
    plan = compile_plan(net, params, frame, engine="native")
    returned, got, *_ = jax.tree.leaves(plan.step(plan.init_state(), frame)[0])
    np.testing.assert_array_equal(returned, frame.transpose(axes))
    np.testing.assert_allclose(got, fn(weights, frame)[1], rtol=1e-5, atol=1e-5)
