"""The exactness contract of one skipped convolution, over clips."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.ops import (
    Accumulate,
    AlwaysGate,
    ClosedLoop,
    ConvNormGate,
    GumbelGate,
    InputNormGate,
    OutputNormGate,
    Previous,
    init_state,
    skip_conv,
)
from tests.ops.cases import BY_NAME, Replay, dense, named

NORM_GATES = (InputNormGate, OutputNormGate, ConvNormGate)
POLICIES = (Previous(), ClosedLoop(), Accumulate())
IMPLEMENTATIONS = ("dense", "blocks")


def clip_outputs(case, params, clip, **kw):
    """All outputs `(T, B, *out, Co)` and masks of a clip by `scan`."""
    state = init_state(params, clip[0], gate=kw["gate"], policy=kw.get("policy"), **case.geometry)

    def step(state, x):
        z, state = skip_conv(params, state, x, **case.geometry, **kw)
        return state, (z, state.fired)

    return jax.jit(functools.partial(jax.lax.scan, step))(state, clip)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("case", "policy"),
    [
        ("plain", Previous()),
        ("stride-two-torch", Previous()),
        ("stride-two-torch", ClosedLoop()),
        ("stride-two-torch", Accumulate()),
        ("depthwise", Previous()),
    ],
    ids=str,
)
def test_threshold_zero_is_dense_over_300_frames(case, implementation, policy):
    case = BY_NAME[case]
    params, clip = case.params(), case.frames(300)
    gate = InputNormGate(0.0, block=case.block)
    _, (z, fired) = clip_outputs(
        case, params, clip, gate=gate, policy=policy, implementation=implementation
    )
    expected = jax.jit(jax.vmap(functools.partial(dense, case, params)))(clip)
    # Previous sums 300 residuals: its rounding grows with the root of the frames.
    np.testing.assert_allclose(np.asarray(z), np.asarray(expected), rtol=0, atol=1e-4)
    assert 0 < float(fired[1:].mean()) < 1  # not by computing everything


@pytest.mark.parametrize("gate", [AlwaysGate(block=4), OutputNormGate(0.0, block=4)])
@pytest.mark.parametrize(
    "case", named("seven-stride-two", "dilated-strided", "asymmetric", "1d", "3d"), ids=str
)
def test_always_and_threshold_zero_are_dense(case, gate):
    params, clip = case.params(), case.frames(12)
    _, (z, fired) = clip_outputs(case, params, clip, gate=gate)
    expected = jax.vmap(functools.partial(dense, case, params))(clip)
    np.testing.assert_allclose(np.asarray(z), np.asarray(expected), rtol=0, atol=3e-5)
    if isinstance(gate, AlwaysGate):
        assert float(fired.min()) == 1


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("gate", NORM_GATES, ids=lambda g: g.__name__)
def test_repeated_frame_does_not_fire_and_changes_no_bit(gate, policy):
    case = BY_NAME["stride-two-torch"]
    params, clip = case.params(), case.frames(3)
    gate = gate(0.0 if gate is OutputNormGate else 1e-3, block=4)
    repeated = jnp.concatenate([clip, clip[-1:], clip[-1:], clip[-1:]])
    for implementation in IMPLEMENTATIONS if isinstance(gate, InputNormGate) else ("blocks",):
        _, (z, fired) = clip_outputs(
            case, params, repeated, gate=gate, policy=policy, implementation=implementation
        )
        np.testing.assert_array_equal(np.asarray(z[3:]), np.asarray(z[2:3]).repeat(3, axis=0))
        assert float(fired[3:].max()) == 0
        assert float(fired[1].max()) == 1


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    "gate",
    [*(g(1e-2, block=4) for g in NORM_GATES), GumbelGate(block=4), AlwaysGate(block=4)],
    ids=lambda g: type(g).__name__,
)
def test_static_clip_through_a_biased_layer_is_constant(gate, policy):
    """The bias belongs to the reference frame: published code adds it at every fired frame."""
    if isinstance(gate, GumbelGate) and isinstance(policy, Accumulate):
        pytest.skip("Accumulate adds up norms, and Gumbel logits are none")
    case = BY_NAME["plain"]
    params = case.params()
    x = case.frames(1)[0]
    conv_params = dict(params)
    if isinstance(gate, GumbelGate):
        # Fires at zero residual as well, by its bias.
        kernel = jnp.zeros((*case.window, case.ci, 1), jnp.float32)
        conv_params["gate"] = {"kernel": kernel, "bias": jnp.full((1,), 3.0)}
    clip = jnp.broadcast_to(x, (6, *x.shape))
    _, (z, fired) = clip_outputs(case, conv_params, clip, gate=gate, policy=policy)
    # Recomputed blocks repeat the same sums; added zeros change nothing.
    np.testing.assert_array_equal(np.asarray(z), np.asarray(z[:1]).repeat(6, axis=0))
    np.testing.assert_allclose(np.asarray(z[0]), np.asarray(dense(case, params, x)), atol=2e-5)
    if isinstance(gate, GumbelGate | AlwaysGate):
        assert float(fired.min()) == 1


def test_scan_equals_frame_by_frame():
    case = BY_NAME["stride-two-same"]
    params, clip = case.params(), case.frames(10)
    gate = InputNormGate(0.3, block=2)
    last, (z, fired) = clip_outputs(case, params, clip, gate=gate)
    state = init_state(params, clip[0], gate=gate, **case.geometry)
    for t, x in enumerate(clip):
        one, state = skip_conv(params, state, x, gate=gate, **case.geometry)
        chex.assert_trees_all_close(one, z[t], atol=1e-5, rtol=0)
        chex.assert_trees_all_equal(state.fired, fired[t])
    chex.assert_trees_all_close(state, last, atol=1e-5, rtol=0)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_streams_in_a_batch_equal_streams_alone_resets_included(implementation, policy):
    case = BY_NAME["plain"]
    params, clip = case.params(), case.frames(8, streams=3)
    gate = InputNormGate(0.2, block=case.block)
    resets = np.zeros((8, 3), bool)
    resets[3, 1] = resets[5, 0] = resets[5, 1] = True

    @jax.jit
    def step(state, x, reset):
        z, state = skip_conv(
            params, state.reset(reset), x, gate=gate, policy=policy, implementation=implementation
        )
        return z, state

    def run(clip, resets):
        state = init_state(params, clip[0], gate=gate, policy=policy)
        out = []
        for x, reset in zip(clip, resets, strict=True):
            z, state = step(state, x, jnp.asarray(reset))
            out.append((np.asarray(z), np.asarray(state.fired)))
        return [np.stack(part, axis=1) for part in zip(*out, strict=True)]

    z, fired = run(clip, resets)
    assert fired[1, 3].min() == fired[0, 5].min() == 1 > fired[2, 1:].min()
    for b in range(3):
        z_alone, fired_alone = run(clip[:, b : b + 1], resets[:, b : b + 1])
        np.testing.assert_allclose(z[b], z_alone[0], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(fired[b], fired_alone[0])


def test_a_reset_stream_forgets_what_was_broken():
    case = BY_NAME["plain"]
    params, clip = case.params(), case.frames(3)
    for policy in POLICIES:
        kw = {"gate": InputNormGate(0.1, block=4), "policy": policy}
        state = init_state(params, clip[0], **kw)
        _, state = skip_conv(params, state, clip[0], **kw)
        broken, state = skip_conv(params, state, clip[1].at[0, 0, 0].set(jnp.nan), **kw)
        assert np.isnan(np.asarray(broken[0])).any(), "NaN must show, not be skipped"
        assert np.isfinite(np.asarray(broken[1])).all()
        z, _ = skip_conv(params, state.reset(jnp.array([True, False])), clip[2], **kw)
        chex.assert_trees_all_close(z[0], dense(case, params, clip[2])[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("policy", [Previous(), ClosedLoop()], ids=lambda p: type(p).__name__)
def test_training_and_inference_agree_given_the_same_masks(policy):
    case = BY_NAME["plain"]
    clip = case.frames(5)
    gate = GumbelGate(block=case.block, bias_init=0.0)
    state = init_state(case.params(), clip[0], gate=gate, policy=policy)
    grid = state.fired.shape
    params = case.params() | {
        "gate": {
            "kernel": 0.1 * jnp.ones((*case.window, case.ci, 1)),
            "bias": jnp.zeros((1,)),
        }
    }
    replay = Replay(case.block, grid)
    states = {i: init_state(params, clip[0], gate=replay, policy=policy) for i in IMPLEMENTATIONS}
    shares = []
    for t, x in enumerate(clip):
        z, state = skip_conv(params, state, x, gate=gate, policy=policy, rng=jax.random.key(t))
        assert set(np.unique(state.fired)) <= {0.0, 1.0}
        shares.append(float(state.fired.mean()))
        given = case.params() | {"gate": {"mask": state.fired}}
        for name in IMPLEMENTATIONS:
            served, states[name] = skip_conv(
                given, states[name], x, gate=replay, policy=policy, implementation=name
            )
            atol = 0 if name == "dense" else 2e-5
            chex.assert_trees_all_close(served, z, atol=atol, rtol=0)
            chex.assert_trees_all_equal(states[name].fired, state.fired)
    assert 0 < min(shares[1:]) < 1


@pytest.mark.parametrize("gate", NORM_GATES, ids=lambda g: g.__name__)
@pytest.mark.parametrize(
    "case",
    named("stride-two-torch", "dilated-strided", "grouped", "depthwise"),
    ids=lambda c: c.name,
)
def test_a_norm_gate_in_training_fires_as_in_inference(case, gate):
    """Published code fails here: norm gates in training, and any geometry but the plainest."""
    params, clip = case.params(), case.frames(2)
    gate = gate(0.05, block=case.block)
    state = init_state(params, clip[0], gate=gate, **case.geometry)
    _, state = skip_conv(params, state, clip[0], gate=gate, **case.geometry)
    kw = {"gate": gate, "implementation": "dense", **case.geometry}
    serving = skip_conv(params, state, clip[1], **kw)
    training = skip_conv(params, state, clip[1], rng=jax.random.key(0), **kw)
    chex.assert_trees_all_equal(training, serving)
    assert float(training[1].fired.mean()) > 0


class TestDtypes:
    """bfloat16 and float16 accumulate in float32; float64 stays float64."""

    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_narrow_floats_equal_float32_on_the_same_values(self, dtype, implementation):
        case = BY_NAME["stride-two-torch"]
        narrow, clip = case.params(dtype=dtype), case.frames(40, dtype=dtype)
        wide = {k: v.astype(jnp.float32) for k, v in narrow.items()}
        gate = InputNormGate(0.05, block=case.block)
        last, (z, fired) = clip_outputs(
            case, narrow, clip, gate=gate, implementation=implementation
        )
        last32, (z32, fired32) = clip_outputs(
            case, wide, clip.astype(jnp.float32), gate=gate, implementation=implementation
        )
        assert z.dtype == dtype
        assert last.output.dtype == jnp.float32
        assert last.reference.dtype == dtype
        # The accumulator is float32, so nothing but the last rounding differs after 40 frames.
        chex.assert_trees_all_close(last.output, last32.output, atol=1e-5, rtol=0)
        chex.assert_trees_all_close(
            z.astype(jnp.float32), z32, atol=1e-5, rtol=float(jnp.finfo(dtype).eps)
        )
        chex.assert_trees_all_equal(fired, fired32)

    def test_float64_is_exact_to_its_own_rounding(self):
        case = BY_NAME["plain"]
        with jax.enable_x64(True):
            params, clip = case.params(dtype=np.float64), case.frames(200, dtype=np.float64)
            for implementation in IMPLEMENTATIONS:
                gate = InputNormGate(0.0, block=case.block)
                _, (z, _) = clip_outputs(
                    case, params, clip, gate=gate, implementation=implementation
                )
                expected = jax.vmap(functools.partial(dense, case, params))(clip)
                assert z.dtype == jnp.float64
                np.testing.assert_allclose(np.asarray(z), np.asarray(expected), rtol=0, atol=1e-12)


def test_several_images_of_a_stream_share_its_reset():
    case = BY_NAME["plain"]
    params, x = case.params(), case.frames(1, streams=6)[0]
    gate = InputNormGate(0.1, block=4)
    state = init_state(params, x, gate=gate, streams=3)
    _, state = skip_conv(params, state, x, gate=gate)
    _, state = skip_conv(params, state.reset(jnp.array([False, True, False])), x, gate=gate)
    np.testing.assert_array_equal(state.fired.min(axis=(1, 2)), [0, 0, 1, 1, 0, 0])


class TestSkipConvVariants(chex.TestCase):
    """`skip_conv` with and without jit."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_all_gates(self):
        case = BY_NAME["grouped"]
        params, clip = case.params(), case.frames(2)
        for gate in (InputNormGate(0.1, block=4), OutputNormGate(0.01, block=4)):
            state = init_state(params, clip[0], gate=gate, **case.geometry)
            step = self.variant(functools.partial(skip_conv, gate=gate, **case.geometry))
            _, state = step(params, state, clip[0])
            z, after = step(params, state, clip[1])
            again, _ = skip_conv(params, state, clip[1], gate=gate, **case.geometry)
            chex.assert_trees_all_close(z, again, atol=1e-5, rtol=0)
            assert not bool(after.fresh.any())
