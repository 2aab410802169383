"""Section 3.3: exact for whole shifts away from the border, borders computed, cost counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipconv_jax import skip
from skipconv_jax.ops import (
    Accumulate,
    ClosedLoop,
    Conv,
    InputNormGate,
    Keyframe,
    Previous,
    init_state,
    skip_conv,
)
from skipconv_jax.ops.bounds import output_bound
from skipconv_jax.warp import (
    Carried,
    Flow,
    Homography,
    Translation,
    Warp,
    dis_flow,
    equivariance_loss,
    phase_correlation,
    resample,
    tracked_homography,
    warp_layer,
)

SIZE = 48


def _texture(height, width, channels, seed):
    """Smooth noise, so that fractional shifts and trackers have something to hold on to."""
    noise = jax.random.normal(jax.random.key(seed), (1, height, width, channels))
    return jax.image.resize(noise[:, ::4, ::4], (1, height, width, channels), "cubic")


@pytest.fixture(scope="module")
def world():
    return np.asarray(_texture(160, 160, 3, 0))


def _view(world, y, x, size=SIZE):
    return jnp.asarray(world[:, 40 + y : 40 + y + size, 40 + x : 40 + x + size])


def _translation(dy, dx):
    return Translation(jnp.array([[dy, dx]], jnp.float32))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(dy=st.integers(-20, 20), dx=st.integers(-20, 20), seed=st.integers(0, 99))
def test_whole_shifts_move_values_bitwise(dy, dx, seed):
    x = np.random.default_rng(seed).normal(size=(1, 12, 13, 2)).astype(np.float32)
    got = resample(jnp.asarray(x), _translation(dy, dx).source((12, 13), (12, 13)))
    want = np.zeros_like(x)
    for row in range(12):
        for column in range(13):
            if 0 <= row - dy < 12 and 0 <= column - dx < 13:
                want[:, row, column] = x[:, row - dy, column - dx]
    np.testing.assert_array_equal(got, want)


def test_three_motions_agree_on_a_translation():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 2)), jnp.float32)
    matrix = jnp.array([[[1, 0, -3.0], [0, 1, 2.0], [0, 0, 1]]])
    field = jnp.broadcast_to(jnp.array([2.0, -3.0]), (1, 32, 32, 2))
    for frame in ((16, 16), (32, 32)):
        want = resample(x, _translation(-2, 3).source((16, 16), frame))
        got = resample(x, Homography(matrix).source((16, 16), frame))
        np.testing.assert_allclose(got, want, atol=1e-5)
    got = resample(x, Flow(field).source((16, 16), (32, 32)))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("policy", [Previous(), Accumulate()])
@pytest.mark.parametrize(
    ("stride", "dilation", "window"), [(1, 1, 3), (2, 1, 3), (1, 2, 3), (2, 1, 1)]
)
def test_a_pan_fires_at_the_border_only_and_is_exact(world, policy, stride, dilation, window):
    """Shifts that the stride divides: no inner block fires, every output is the dense one."""
    kernel = jax.random.normal(jax.random.key(1), (window, window, 3, 4))
    geometry = {"strides": stride, "dilation": dilation}
    frame = (SIZE, SIZE)
    conv = Conv.make((1, *frame, 3), kernel.shape, **geometry)
    params = {"kernel": kernel, "bias": jnp.arange(4.0)}
    gate = InputNormGate(1e-4, block=4)
    state = init_state(params, _view(world, 0, 0), gate=gate, policy=policy, **geometry)

    @jax.jit
    def step(state, x, motion):
        state = warp_layer(state, motion, conv, gate.block, policy, frame)
        z, state = skip_conv(params, state, x, gate=gate, policy=policy, **geometry)
        return z, state, jnp.abs(z - conv(x, kernel) - params["bias"][None, None, None]).max()

    y = x = 0
    still = _translation(0, 0)
    _, state, _ = step(state, _view(world, y, x), still)
    _, again, _ = step(state, _view(world, y, x), still)
    assert again.fired.sum() == 0
    for dy, dx in ((0, 4), (-2, 0), (4, -6), (2, 2)):
        y, x = y - dy, x - dx
        _, state, error = step(state, _view(world, y, x), _translation(dy, dx))
        assert error < 1e-4
        inner = state.fired[:, 2:-2, 2:-2]
        assert inner.size > 0
        assert inner.sum() == 0
        assert 0 < state.fired.mean() < 1
        # Borders that lie along the motion have the same padding after it as before.
        along = state.fired[:, :, 2:-2] if dy == 0 else state.fired[:, 2:-2]
        assert (dy and dx) or along.sum() == 0
    assert state.stale is None


def test_fractional_translation_is_equivariant_at_stride_one(world):
    """Bilinear interpolation by one offset is itself a convolution, and convolutions commute."""
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    x = _view(world, 0, 0)
    conv = Conv.make(x.shape, kernel.shape)
    source = _translation(1.25, -0.5).source((SIZE, SIZE), (SIZE, SIZE))
    left = conv(resample(x, source), kernel)[:, 4:-4, 4:-4]
    right = resample(conv(x, kernel), source)[:, 4:-4, 4:-4]
    np.testing.assert_allclose(left, right, atol=1e-4)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    moves=st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=6, max_size=6),
    seed=st.integers(0, 99),
)
def test_accumulate_keeps_its_bound_while_panning(world, moves, seed):
    kernel = jax.random.normal(jax.random.key(seed), (3, 3, 3, 4))
    frame, gate, policy = (SIZE, SIZE), InputNormGate(0.1, block=4), Accumulate()
    conv = Conv.make((1, *frame, 3), kernel.shape)
    params = {"kernel": kernel, "gate": gate.init(None, conv)}
    bound = output_bound(gate, params["gate"], kernel, conv)
    state = init_state(params, _view(world, 0, 0), gate=gate, policy=policy)

    @jax.jit
    def step(state, x, motion):
        state = warp_layer(state, motion, conv, gate.block, policy, frame)
        z, state = skip_conv(params, state, x, gate=gate, policy=policy)
        return state, (jnp.abs(z - conv(x, kernel)).max(axis=(0, 1, 2)) / bound).max()

    y = x = 0
    noise = np.random.default_rng(seed)
    for dy, dx in [*moves, *moves, *moves]:
        y, x = np.clip(y - dy, -30, 30), np.clip(x - dx, -30, 30)
        seen = _view(world, y, x) + jnp.asarray(
            0.03 * noise.normal(size=(1, *frame, 3)), jnp.float32
        )
        state, ratio = step(state, seen, _translation(dy, dx))
        assert ratio <= 1 + 1e-3
    assert state.fired.mean() < 1


@pytest.mark.parametrize("policy", [ClosedLoop(), Keyframe()])
def test_policies_that_cannot_move_say_so(policy):
    params, gate = {"kernel": jnp.ones((3, 3, 1, 1))}, InputNormGate()
    x = jnp.zeros((1, 16, 16, 1))
    state = init_state(params, x, gate=gate, policy=policy)
    conv = Conv.make(x.shape, (3, 3, 1, 1))
    with pytest.raises(ValueError, match="use Accumulate"):
        warp_layer(state, _translation(1, 1), conv, gate.block, policy, (16, 16))


def _network(variables, x):
    for name, stride in (("a", 1), ("b", 2), ("c", 1)):
        x = jax.lax.conv_general_dilated(
            x,
            variables[name],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x)
    return x


@pytest.fixture(scope="module")
def variables():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"a": (3, 3, 3, 4), "b": (3, 3, 4, 4), "c": (3, 3, 4, 2)}
    return {
        n: 0.3 * jax.random.normal(k, s) for (n, s), k in zip(shapes.items(), keys, strict=True)
    }


@pytest.mark.parametrize("policy", [Previous(), Accumulate()])
def test_network_on_a_pan(world, variables, policy):
    """Two streams that move apart: outputs within the gates' reach of dense, interior untouched."""
    net = skip(_network, gate=InputNormGate(1e-4, block=4), policy=policy)
    shifts = np.array([[0, 2], [-2, 0]])
    clip = jnp.stack(
        [jnp.concatenate([_view(world, *(-t * shift)) for shift in shifts]) for t in range(5)]
    )
    params, state = net.init(variables, clip[0])
    warp = Warp.make(net, variables, clip[0])
    motion = Translation(jnp.asarray(shifts, jnp.float32))

    def step(state, x):
        y, state = net.apply(params, warp(state, motion), x)
        error = jnp.abs(y - _network(variables, x)).max()
        return state, (error, {name: layer.fired for name, layer in state.items()})

    _, (errors, fired) = jax.jit(lambda s: jax.lax.scan(step, s, clip))(state)
    assert errors.max() < 1e-3
    assert fired["a"][1:, :, 3:-3, 3:-3].sum() == 0
    assert fired["c"][1:, :, 3:-3, 3:-3].sum() == 0
    assert fired["a"][1:].mean() > 0


def _pan_errors(world, variables, motions, speed):
    """Largest error of each frame under a pan, the gates firing on any change."""
    net = skip(_network, gate=InputNormGate(1e-4, block=4), policy=Accumulate())
    clip = [_view(world, 0, -speed * t) for t in range(len(motions))]
    params, state = net.init(variables, clip[0])
    warp = Warp.make(net, variables, clip[0])

    @jax.jit
    def step(state, x, motion):
        y, state = net.apply(params, warp(state, motion), x)
        return state, jnp.abs(y - _network(variables, x)).max(), warp.macs(motion)

    errors = []
    for x, motion in zip(clip, motions, strict=True):
        state, error, cost = step(state, x, motion)
        errors.append((float(error), float(cost.sum())))
    return np.array(errors).T


def test_what_a_stride_does_not_divide_is_carried_over(world, variables):
    """A pan of one pixel a frame through stride 2: interpolated it drifts, carried it does not."""
    fractional = [_translation(0, int(t > 0)) for t in range(8)]
    path, carried = Carried.start(1), []
    for motion in fractional:
        path = path.moved(motion)
        carried.append(path)
    interpolated, paid = _pan_errors(world, variables, fractional, 1)
    whole, free = _pan_errors(world, variables, carried, 1)
    assert whole.max() < 1e-3 < 0.05 < interpolated.max()
    assert free.max() == 0 < paid.max()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=12),
    stride=st.sampled_from([1, 2, 4]),
    size=st.sampled_from([8, 12]),
)
def test_carried_positions_add_up(steps, stride, size):
    """Every layer moves by whole positions, its input by as much, never further off than half."""
    frame = (stride * size * 2, stride * size * 2)
    conv = Conv.make((1, 2 * size, 2 * size, 1), (3, 3, 1, 1), strides=2)
    path, moved = Carried.start(1), np.zeros(2)
    for step in steps:
        path = path.moved(_translation(step, -step))
        source_in, source_out = path.layer(conv, frame)
        by = np.asarray(path.positions(conv.out_spatial, frame)[0])
        np.testing.assert_array_equal(source_out[0, 0, 0], -by)
        np.testing.assert_array_equal(source_in[0, 0, 0], -2 * by)
        np.testing.assert_array_equal(by, np.round(by))
        moved += by * 2 * stride
    assert np.abs(moved - np.asarray(path.now[0])).max() <= stride + 1e-3


def test_cost_of_the_warp(world, variables):
    net = skip(_network, policy=Accumulate())
    x = _view(world, 0, 0)
    warp = Warp.make(net, variables, x)
    assert warp.macs(_translation(2, -4)).sum() == 0
    # An odd shift is whole at the frame's resolution and half a position at half of it. Inputs
    # are moved with their padding of 1.
    pixels, around, around_half = SIZE * SIZE, (SIZE + 2) ** 2, (SIZE // 2 + 2) ** 2
    low = 4 * (pixels // 4 * (4 + 2) + around_half * 4)
    np.testing.assert_allclose(warp.macs(_translation(0, 1)), low)
    high = 4 * (pixels * 4 + around * (3 + 4))
    np.testing.assert_allclose(warp.macs(_translation(0.25, 0)), low + high)
    assert warp.macs(Carried.start(1).moved(_translation(0.25, 1))).sum() == 0
    assert warp.values() == pixels * (3 + 4 + 4) + pixels // 4 * (4 + 4 + 2)


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (3, -5), (-7, 2), (0, 9)])
def test_phase_correlation_finds_whole_shifts(world, dy, dx):
    motion = jax.jit(phase_correlation)(_view(world, 0, 0), _view(world, -dy, -dx))
    np.testing.assert_allclose(motion.shift, [[dy, dx]], atol=0.3)
    np.testing.assert_array_equal(motion.rounded().shift, [[dy, dx]])


def test_phase_correlation_of_unrelated_frames_is_no_motion():
    a, b = jax.random.normal(jax.random.key(0), (2, 1, 64, 64, 3))
    np.testing.assert_array_equal(phase_correlation(a, b, smallest_peak=0.1).shift, [[0, 0]])


def test_phase_correlation_sees_through_a_moving_object(world):
    """The camera stands still, a tenth of the picture moves."""
    a, b = _view(world, 0, 0, 64), _view(world, 0, 0, 64)
    a = a.at[:, 10:30, 10:30].set(3.0)
    b = b.at[:, 10:30, 14:34].set(3.0)
    np.testing.assert_array_equal(phase_correlation(a, b).rounded().shift, [[0, 0]])


@pytest.mark.parametrize("estimate", [tracked_homography, dis_flow])
def test_host_estimators_follow_a_pan(world, estimate):
    then, now = _view(world, 0, 0, 96), _view(world, -2, 3, 96)
    source = estimate(then, now).source((96, 96), (96, 96))
    moved = resample(then, source)
    inner = (slice(None), slice(16, -16), slice(16, -16))
    before = jnp.abs(now - then)[inner].mean()
    assert jnp.abs(now - moved)[inner].mean() < 0.2 * before


@pytest.mark.parametrize("estimate", [tracked_homography, dis_flow, phase_correlation])
def test_flat_frames_do_not_move(estimate):
    flat = jnp.full((2, 32, 32, 3), 0.5)
    source = estimate(flat, flat).source((32, 32), (32, 32))
    np.testing.assert_allclose(resample(flat, source), flat, atol=1e-5)


def test_estimators_refuse_frames_of_different_size():
    with pytest.raises(ValueError, match="of one shape"):
        phase_correlation(jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8, 16, 3)))


def test_equivariance_loss(world, variables):
    """Zero for shifts every stride divides, positive otherwise, and training lowers it."""
    x = _view(world, 0, 0)
    loss, y = equivariance_loss(_network, variables, x, _translation(2, -4))
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    np.testing.assert_allclose(y, _network(variables, x), atol=1e-5)

    @jax.jit
    def odd(variables):
        return equivariance_loss(_network, variables, x, _translation(1, 0))[0]

    before, gradient = jax.jit(jax.value_and_grad(odd))(variables)
    assert before > 1e-3
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in gradient.values()))
    after = odd(jax.tree.map(lambda w, g: w - 0.05 * g / norm, variables, gradient))
    assert after < before


def test_equivariance_loss_needs_a_convolution():
    with pytest.raises(ValueError, match="two spatial axes"):
        equivariance_loss(lambda v, x: x * v, 2.0, jnp.ones((1, 4, 4, 1)), _translation(0, 0))
