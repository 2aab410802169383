"""Deep Feature Flow: exact where the flow is; its parts, their cost and their gradients."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skipconv_jax import skip
from skipconv_jax.baselines.feature_flow import FeatureFlow, feature_flow
from skipconv_jax.baselines.flow import (
    Guide,
    Learned,
    join_variables,
    part,
    warp_levels,
)
from skipconv_jax.baselines.flow_training import draw_frames, flow_loss
from skipconv_jax.baselines.video_net import make_video_streamer
from skipconv_jax.data.augment import normalize
from skipconv_jax.models import EfficientDet, init_variables
from skipconv_jax.models.flow_net import FlowNet
from skipconv_jax.training.step import create_state, make_step, split
from skipconv_jax.warp import BlockMatching

# Half the time to compile, slower to run: for what runs once.
QUICK = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class Shift:
    """A known flow: the frame moved by `shift` pixels."""

    shift: tuple[float, float]

    def __call__(self, variables, key, now):
        shape = (now.shape[0], now.shape[1] // 4, now.shape[2] // 4, 2)
        field = -jnp.asarray(self.shift, jnp.float32)[None, None, None]
        return Guide(jnp.broadcast_to(field, shape))

    def macs(self, variables, x):
        return 7


def known(model, shift, interval=3):
    return FeatureFlow(
        lambda v, x: model.apply(v, x, method="extract"),
        lambda v, levels: model.apply(v, levels, method="detect"),
        Shift(shift),
        lambda x: x,
        interval,
    )


@pytest.fixture(scope="module")
def learned(halves, drawn):
    """Feature flow with a flow network whose last layers are no longer zero."""
    model, variables, frames = halves
    flow = FlowNet(model.channels, width=2)
    own = drawn(flow, 3, frames[0], frames[0])
    return feature_flow(model, flow, interval=3), join_variables(variables, own)


def test_repeated_frames_without_flow_are_dense(halves):
    model, variables, frames = halves
    net = known(model, (0, 0))
    params, state = net.init(variables, frames[0])
    still = jnp.broadcast_to(frames[:1], frames.shape)
    _, reading = make_video_streamer(net, lambda y: y)(params, state, still)
    for outputs in reading.outputs:
        np.testing.assert_array_equal(outputs, reading.outputs[0])
    np.testing.assert_allclose(reading.outputs[0], model.apply(variables, frames[0]), atol=1e-6)


@pytest.mark.parametrize("shift", [(32, 0), (0, -64), (-32, 32)])
def test_true_flow_gives_the_dense_features_away_from_the_border(halves, shift):
    model, variables, _ = halves
    world = jnp.asarray(np.random.default_rng(5).normal(size=(1, 320, 320, 3)), jnp.float32)
    key = world[:, 96:224, 96:256]
    now = world[:, 96 - shift[0] : 224 - shift[0], 96 - shift[1] : 256 - shift[1]]
    net = known(model, shift)

    @jax.jit
    def both(key, now):
        warped = net.warped(variables, net.extract(variables, key), key, now)
        return warped, net.extract(variables, now)

    for stride, level, dense in zip((8, 16, 32), *both(key, now), strict=True):
        rows, columns = (
            slice(max(s, 0) // stride, n + min(s, 0) // stride)
            for s, n in zip(shift, level.shape[1:3], strict=True)
        )
        seen = level[:, rows, columns]
        assert seen.size >= level.size / 4
        np.testing.assert_allclose(seen, dense[:, rows, columns], rtol=1e-5, atol=1e-6)
        assert float(jnp.abs(level - dense).max()) > 0.01  # and the border is not


def test_fields_are_brought_to_every_level():
    """A field at another resolution, in pixels: half the frame moves, the other half stays."""
    level = np.random.default_rng(0).normal(size=(1, 8, 12, 4)).astype(np.float32)
    field = jnp.asarray(np.where(np.arange(24)[:, None] >= 12, [0.0, -8.0], 0.0), jnp.float32)
    field = jnp.broadcast_to(field, (1, 16, 24, 2))
    moved = warp_levels([jnp.asarray(level)], Guide(field), (64, 96))[0]
    np.testing.assert_allclose(moved[:, :, :5], level[:, :, :5], atol=1e-6)
    np.testing.assert_allclose(moved[:, :, 7:], level[:, :, 6:-1], atol=1e-6)
    doubled = warp_levels(
        [jnp.asarray(level)], Guide(field, (jnp.full(level.shape, 2.0),)), (64, 96)
    )
    np.testing.assert_allclose(doubled[0], 2 * moved)


def test_fractions_are_bilinear_and_beyond_the_edge_the_edge_is_repeated():
    level = jnp.arange(6.0).reshape(1, 1, 6, 1)
    moved = warp_levels([level], Guide(jnp.full((1, 1, 6, 2), 20.0)), (8, 48))[0]
    np.testing.assert_allclose(moved[0, 0, :, 0], [2.5, 3.5, 4.5, 5, 5, 5])


def test_cost_is_the_sum_of_the_parts(halves, learned):
    model, variables, frames = halves
    net, joined = learned
    costs = net.costs(joined, frames[0])
    table = skip(model.apply).table(variables, frames[0])
    heads = sum(row.macs for row in table.rows if row.name.startswith("heads"))
    assert (costs.dense, costs.head) == (table.macs, heads)
    assert net.dense_macs(joined, frames[0]) == table.macs
    values = 8 * 12 * 4 + 4 * 6 * 5 + 2 * 3 * 6
    assert costs.warp == 4 * values
    # conv1 ... of FlowNet on 32 x 48 pairs, width 2: 5x5, 3x3s, 1x1s; scales multiply each value.
    at4, at8, at16, at32 = 16 * 24, 8 * 12, 4 * 6, 2 * 3
    flow = at4 * 25 * 6 * 2 + at8 * 9 * 2 * 4 + at16 * 9 * (4 + 8) * 8 + at32 * 9 * (8 + 16) * 16
    flow += at32 * 16 * 8 + at16 * 9 * 16 * 8 + at16 * 8 * 4 + at8 * 9 * 8 * 4
    flow += at8 * 9 * 4 * 2 + at8 * 4 * 4 + at16 * 8 * 5 + at32 * 16 * 6
    assert costs.flow == flow + values
    params, state = net.init(joined, frames[0])
    _, reading = make_video_streamer(net, lambda y: y.mean())(params, state, frames)
    between = costs.flow + costs.warp + heads
    spent = [table.macs, between, between, table.macs, between, between, table.macs]
    np.testing.assert_allclose(reading.macs, np.stack([spent, spent], axis=1), rtol=1e-6)


def test_streams_are_separate(halves, learned, check_streams):
    _, _, frames = halves
    net, joined = learned
    check_streams(dataclasses.replace(net, interval=4), joined, frames)


def test_classical_flow_takes_the_detector_as_it_is(halves):
    model, variables, _ = halves
    rng = np.random.default_rng(0)
    world = np.repeat(np.repeat(rng.integers(0, 256, (1, 40, 40, 3)), 8, 1), 8, 2)
    clip = [world[:, 64 : 64 + 128, 64 + 8 * t : 64 + 8 * t + 160] for t in range(4)]
    frames = jnp.asarray(np.stack(clip), jnp.uint8)
    matching = BlockMatching(stride=4, radius=4)
    net = feature_flow(model, matching, normalize, interval=4)
    params, state = net.init(variables, frames[0])
    _, reading = make_video_streamer(net, lambda y: y)(params, state, frames)
    dense = jax.jit(model.apply)(variables, normalize(frames[2]))
    error = np.abs(reading.outputs[2] - dense).mean()
    copied = np.abs(reading.outputs[0] - dense).mean()
    assert error < 0.5 * copied
    costs = net.costs(variables, frames[0])
    assert costs.flow == matching.macs(128, 160, 3)


def test_an_untrained_flow_network_copies_an_efficientdet():
    """Flow 0 and scale 1: outputs of the key frame, whatever the frame; names as ever."""
    model = EfficientDet(1, features=8, cells=1, head_depth=1, width=0.2, depth=0.25)
    x = jax.random.normal(jax.random.key(0), (2, 1, 64, 64, 3))
    variables = init_variables(model, jax.random.key(1), x[0])
    levels = jax.eval_shape(lambda v, x: model.apply(v, x, method="extract"), variables, x[0])
    flow = FlowNet(tuple(level.shape[-1] for level in levels), width=2)
    joined = join_variables(variables, init_variables(flow, jax.random.key(2), x[0], x[1]))
    assert jax.tree.structure(part(joined, "detector")) == jax.tree.structure(variables)
    net = feature_flow(model, flow, interval=2)
    params, state = net.init(joined, x[0])
    step = jax.jit(net.apply, compiler_options=QUICK)
    first, state = step(params, state, x[0])
    second, _ = step(params, state, x[1])
    dense = jax.jit(model.apply, compiler_options=QUICK)(variables, x[0])
    for copied, ours, theirs in zip(second, first, dense, strict=True):
        np.testing.assert_array_equal(copied, ours)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


class Target:
    """A task that wants outputs to be the batch's `y`."""

    def losses(self, outputs, targets):
        return {"error": jnp.square(outputs - targets["y"]).mean()}


def _batch(model, variables, frames):
    y = jax.jit(jax.vmap(lambda x: model.apply(variables, x)))(frames)
    return {"frames": jnp.swapaxes(frames, 0, 1), "y": jnp.swapaxes(y, 0, 1)}


def test_loss_is_that_of_the_warped_frame(halves, learned):
    model, variables, frames = halves
    net, joined = learned
    batch = _batch(model, variables, frames)
    params, stats = split(joined)
    loss_fn = flow_loss(net, Target(), pairs=2)

    @jax.jit
    def both(key):
        loss, aux = loss_fn({"model": params}, stats, batch, key)
        offsets, drawn = draw_frames(batch, key, 2)
        first = jnp.repeat(frames[0], 2, axis=0)
        levels = net.extract(joined, first)
        warped = net.warped(joined, levels, first, drawn["frames"])
        moved, still = net.detect(joined, warped), net.detect(joined, levels)
        outputs = jnp.where(offsets[:, None, None] > 0, moved, still)
        return loss, aux, offsets, jnp.square(outputs - drawn["y"]).mean()

    loss, (figures, after), offsets, want = both(jax.random.key(1))
    assert 0 < int((offsets == 0).sum()) < 4
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    assert after == {}
    assert float(figures.extra["flow_pixels"]) > 0


def test_frames_are_drawn_evenly_without_replacement():
    batch = {"frames": jnp.arange(3000.0).reshape(1000, 3), "y": jnp.arange(3000).reshape(1000, 3)}
    offsets, drawn = draw_frames(batch, jax.random.key(0), 2)
    np.testing.assert_array_equal(drawn["y"], np.repeat(np.arange(1000), 2) * 3 + offsets)
    np.testing.assert_array_equal(drawn["frames"], drawn["y"].astype(np.float32))
    pairs = np.asarray(offsets).reshape(1000, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    np.testing.assert_allclose(np.bincount(pairs[:, 0]) / 1000, 1 / 3, atol=0.06)


def test_gradients_reach_the_flow_network(halves, learned):
    """From the zero start the last layers learn at once; from there on everything does."""
    model, variables, frames = halves
    net, joined = learned
    batch = _batch(model, variables, frames)
    flow = joined["params"]["flow"]
    last = {"flow", "scale3", "scale4", "scale5"}
    zeroed = {k: jax.tree.map(jnp.zeros_like, v) if k in last else v for k, v in flow.items()}
    blank = join_variables(variables, {"params": zeroed})
    loss_fn = flow_loss(net, Target(), pairs=3)
    grad = jax.jit(jax.grad(loss_fn, has_aux=True), compiler_options=QUICK)
    for tree, reached in ((blank, last), (joined, None)):
        params, stats = split(tree)
        grads, _ = grad({"model": params}, stats, batch, jax.random.key(6))
        for name, layer in grads["model"]["flow"].items():
            largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(layer))
            assert (largest > 0) == (reached is None or name in reached), name
        detector = jax.tree.leaves(grads["model"]["detector"])
        assert all(float(jnp.abs(leaf).max()) > 0 for leaf in detector)


def test_training_finds_the_motion(halves):
    """Frames move by 6 pixels each; the photometric term leads the flow there from its zero."""
    model, variables, _ = halves
    smooth = np.random.default_rng(8).normal(size=(4, 8, 14, 3)).astype(np.float32)
    world = np.stack(
        [cv2.resize(image, (112, 64), interpolation=cv2.INTER_CUBIC) for image in smooth]
    )
    frames = jnp.asarray(np.stack([world[:, :, 16 - 6 * t : 80 - 6 * t] for t in range(3)]))
    batch = _batch(model, variables, frames)
    flow = FlowNet(model.channels, width=4)
    joined = join_variables(variables, init_variables(flow, jax.random.key(3), *frames[:2]))
    net = feature_flow(model, flow)
    optimizer = optax.adam(5e-3)
    state = create_state(joined, {}, optimizer)
    with jax.numpy_dtype_promotion("standard"):  # optax's
        step = make_step(flow_loss(net, Target(), pairs=3, photometric=1.0), optimizer)
        errors = []
        for _ in range(80):
            state, figures = step(state, batch, jax.random.key(0))
            errors.append(float(figures.terms["photometric"]))
    assert np.mean(errors[-5:]) < 0.5 * np.mean(errors[:5])
    field = jax.jit(net.estimate)(state.variables, frames[0], frames[2]).field
    np.testing.assert_allclose(np.mean(field[:, 1:-1, 2:-1], axis=(0, 1, 2)), [0, -12], atol=2.5)


def test_errors_say_what_to_do(halves, learned):
    model, variables, frames = halves
    net, joined = learned
    with pytest.raises(ValueError, match=r"`interval` \(=0\)"):
        feature_flow(model, BlockMatching(), interval=0)
    with pytest.raises(ValueError, match="use join_variables"):
        net.init(variables, frames[0])
    with pytest.raises(ValueError, match="use join_variables"):
        part({"params": {"detector": {}}}, "flow")
    with pytest.raises(ValueError, match=r"`pairs` \(=0\)"):
        flow_loss(net, Target(), pairs=0)
    with pytest.raises(ValueError, match="at most the clips' length, 7"):
        draw_frames({"frames": jnp.swapaxes(frames, 0, 1)}, jax.random.key(0), 8)
    _, state = net.init(joined, frames[0])
    with pytest.raises(ValueError, match=r"`streams` .* must be bool"):
        net.reset(state, jnp.zeros((2,)))
    assert isinstance(net.estimate, Learned)
