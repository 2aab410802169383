"""Skipping on integers is exact: threshold 0 equals the dense int8 layer bit by bit, for ever."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipconv_jax.ops import (
    POLICIES,
    AlwaysGate,
    Conv,
    GumbelGate,
    InputNormGate,
    OutputNormGate,
)
from skipconv_jax.ops import quantised as q
from skipconv_jax.ops.quantised_conv import IntConv, init_int_state, int_skip_conv

SIZE = (9, 11)


def _layer(rng, *, channels=4, out=6, window=(3, 3), stride=1, groups=1, zeros=(120, -3), loud=1.0):
    kernel = rng.integers(-127, 128, (*window, channels // groups, out)).astype(np.int8)
    conv = Conv.make((1, *SIZE, channels), kernel.shape, strides=stride, groups=groups)
    into, outof = q.Grid(0.05, zeros[0], "uint8"), q.Grid(0.1, zeros[1], "int8")
    steps = rng.uniform(1e-3, 5e-3, out).astype(np.float32)
    real = kernel * steps
    table = rng.permutation(256).astype(np.uint8)
    return IntConv(
        conv,
        into,
        kernel,
        rng.integers(-2000, 2000, out).astype(np.int32),
        (np.float32(loud) * np.float32(into.scale) * steps / np.float32(outof.scale)),
        q.Finish.on(outof, lo=-90.0).then(table),
        float(np.abs(real).mean()),
        float(np.abs(real).sum()),
        steps,
    )


def _dense(layer, x):
    acc = q.int_conv(x.astype(jnp.int32) - layer.grid.zero, layer.kernel, layer.conv)
    return q.scaled(acc + q.last_axes(layer.bias, acc), layer.multiplier, layer.finish)


def _stream(rng, count, channels, streams=2, saturated=False):
    """Noise below half a step in most places, motion in a corner, quantised."""
    grid = q.Grid(0.05, 120, "uint8")
    scene = rng.normal(size=(streams, *SIZE, channels)) * (40 if saturated else 3)
    for t in range(count):
        frame = scene + rng.normal(size=scene.shape) * 0.002
        frame[:, t % 6 : t % 6 + 3, 1:4] += rng.normal(size=channels)
        yield q.quantize(jnp.asarray(frame, jnp.float32), grid)


@functools.cache
def _step(gate, policy):
    def step(static, weights, params, state, x):
        return int_skip_conv(
            static.layer, weights, params, state, x, gate=gate, policy=POLICIES[policy]()
        )

    return jax.jit(step, static_argnums=0)


@dataclasses.dataclass(frozen=True, eq=False)
class _Static:
    """By identity, so that a layer can be a static argument."""

    layer: IntConv


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    policy=st.sampled_from(sorted(POLICIES)),
    window=st.sampled_from([(1, 1), (3, 3), (2, 5)]),
    stride=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    block=st.sampled_from([1, 3, 4, 8]),
    norm=st.sampled_from([InputNormGate, OutputNormGate]),
    zero=st.sampled_from([0, 120, 255]),
    saturated=st.booleans(),
    seed=st.integers(0, 99),
)
def test_threshold_zero_equals_the_dense_layer_on_noisy_streams_with_resets(
    policy, window, stride, groups, block, norm, zero, saturated, seed
):
    rng = np.random.default_rng(seed)
    layer = _layer(rng, out=8, window=window, stride=stride, groups=groups, zeros=(zero, 5))
    gate = norm(0.0, block=block)
    state = init_int_state(layer, gate, POLICIES[policy](), 2)
    params = gate.init(None, layer.conv)
    static, weights = _Static(layer), jax.tree.map(jnp.asarray, layer.arrays())
    for t, x in enumerate(_stream(rng, 6, 4, saturated=saturated)):
        if t == 3:
            state = state.reset(jnp.array([True, False]))
        y, state = _step(gate, policy)(static, weights, params, state, x)
        np.testing.assert_array_equal(y, _dense(layer, x))
        if t == 3:
            assert np.asarray(state.fired)[0].all()
    assert y.dtype == np.uint8


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_noise_below_a_step_fires_nothing(policy):
    rng = np.random.default_rng(0)
    layer = _layer(rng)
    gate = InputNormGate(0.0, block=4)
    state = init_int_state(layer, gate, POLICIES[policy](), 1)
    weights = jax.tree.map(jnp.asarray, layer.arrays())
    step = functools.partial(_step(gate, policy), _Static(layer), weights, gate.init(None, None))
    scene = rng.integers(0, 256, (1, *SIZE, 4))
    noise = rng.uniform(-0.4, 0.4, (20, *scene.shape))
    for t in range(5):
        real = ((scene - 120 + noise[t]) * 0.05).astype(np.float32)
        _, state = step(state, q.quantize(jnp.asarray(real), layer.grid))
        assert float(state.fired.sum()) == (0 if t else state.fired.size)
    moved = scene.copy()
    moved[0, 0, 0, 0] = (scene[0, 0, 0, 0] + 7) % 256
    _, state = step(state, jnp.asarray(moved, jnp.uint8))
    fired = np.zeros(state.fired.shape)
    fired[0, 0, 0] = 1
    np.testing.assert_array_equal(state.fired, fired)


def test_previous_never_drifts_over_a_thousand_frames():
    """Accumulators are added to a thousand times and still are the dense ones."""
    rng = np.random.default_rng(4)
    layer = _layer(rng, channels=2, out=3)
    gate = InputNormGate(0.0, block=4)
    state = init_int_state(layer, gate, POLICIES["previous"](), 1)
    weights, static = jax.tree.map(jnp.asarray, layer.arrays()), _Static(layer)
    run = _step(gate, "previous")
    clip = jnp.asarray(rng.integers(0, 256, (1000, 1, *SIZE, 2)), jnp.uint8)
    clip = clip.at[:, :, 4:].set(clip[:1, :, 4:])

    def body(state, x):
        _, state = run(static, weights, gate.init(None, None), state, x)
        return state, state.fired.mean()

    state, fired = jax.lax.scan(body, state, clip)
    dense = q.int_conv(clip[-1].astype(jnp.int32) - layer.grid.zero, layer.kernel, layer.conv)
    np.testing.assert_array_equal(state.output, dense + q.last_axes(layer.bias, dense))
    assert 0.3 < float(fired[1:].mean()) < 0.9


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_state_is_bytes_and_accumulators(policy):
    layer = _layer(np.random.default_rng(0))
    state = init_int_state(layer, InputNormGate(0.1), POLICIES[policy](), 1)
    frames = state.reference["frame"] if isinstance(state.reference, dict) else state.reference
    assert frames.dtype == np.uint8
    assert state.output.dtype == (np.int32 if policy == "previous" else np.uint8)
    assert np.asarray(frames == layer.grid.zero).all()


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_negative_threshold_computes_everything(policy):
    rng = np.random.default_rng(5)
    layer = _layer(rng)
    below = {"threshold": jnp.float32(-1)}
    for gate, params in ((InputNormGate(0.0, block=4), below), (AlwaysGate(block=4), {})):
        state = init_int_state(layer, gate, POLICIES[policy](), 2)
        weights = jax.tree.map(jnp.asarray, layer.arrays())
        for x in _stream(rng, 3, 4):
            y, state = _step(gate, policy)(_Static(layer), weights, params, state, x)
            assert np.asarray(state.fired).all()
            np.testing.assert_array_equal(y, _dense(layer, x))


def test_norm_gates_fire_as_the_float_ones_do():
    """The same threshold, in units of the activations, on the same residual."""
    rng = np.random.default_rng(6)
    layer = _layer(rng)
    before, after = (next(_stream(rng, 1, 4, streams=1)) for _ in range(2))
    mixed = before.at[:, :4].set(after[:, :4])
    real = (mixed.astype(jnp.float32) - before.astype(jnp.float32)) * 0.05
    kernel = jnp.asarray(layer.kernel * layer.steps)
    for norm in (InputNormGate, OutputNormGate):
        for reduction in ("mean", "sum"):
            scores = norm(0.0, 4, reduction).scores({}, real, kernel, layer.conv)
            gate = norm(float(np.median(scores)) * 1.001, 4, reduction)
            state = init_int_state(layer, gate, POLICIES["previous"](), 1)
            weights = jax.tree.map(jnp.asarray, layer.arrays())
            for x in (before, mixed):
                params = gate.init(None, layer.conv)
                _, state = _step(gate, "previous")(_Static(layer), weights, params, state, x)
            wanted = jax.lax.reduce_window(
                scores, -jnp.inf, jax.lax.max, (1, 4, 4), (1, 4, 4), ((0, 0), (0, 3), (0, 1))
            )
            np.testing.assert_array_equal(state.fired, wanted > gate.threshold)
            assert 0 < float(state.fired.mean()) < 1


def test_a_gumbel_gate_sees_the_real_residual():
    rng = np.random.default_rng(7)
    layer = _layer(rng)
    gate = GumbelGate(block=4, bias_init=-0.2)
    params = gate.init(jax.random.key(0), layer.conv)
    state = init_int_state(layer, gate, POLICIES["closed_loop"](), 1)
    weights = jax.tree.map(jnp.asarray, layer.arrays())
    frames = list(_stream(rng, 2, 4, streams=1))
    for x in frames:
        _, state = _step(gate, "closed_loop")(_Static(layer), weights, params, state, x)
    real = (frames[1].astype(jnp.float32) - frames[0].astype(jnp.float32)) * 0.05
    logits = gate.scores(params, real, None, layer.conv)
    wanted = jax.lax.reduce_window(
        logits, -jnp.inf, jax.lax.max, (1, 4, 4), (1, 4, 4), ((0, 0), (0, 3), (0, 1))
    )
    np.testing.assert_array_equal(state.fired, wanted >= 0)


def test_warped_states_are_refused():
    layer = _layer(np.random.default_rng(0))
    gate, policy = InputNormGate(0.0), POLICIES["closed_loop"]()
    state = init_int_state(layer, gate, policy, 1)
    state = dataclasses.replace(state, stale=state.fired > 0)
    with pytest.raises(NotImplementedError, match="precision='float32'"):
        int_skip_conv(
            layer, layer.arrays(), {}, state, jnp.zeros((1, *SIZE, 4), jnp.uint8),
            gate=gate, policy=policy,
        )  # fmt: skip
