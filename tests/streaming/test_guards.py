"""Reset policies: each inside one compiled scan, per stream, never asking the host."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import skip
from skipconv_jax.ops import ClosedLoop, InputNormGate, Previous
from skipconv_jax.streaming.guards import Drift, Every, Guard, SceneCut, dense_outputs, first_firing

SHAPE = (2, 32, 32, 3)


def _conv(x, kernel, stride=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _network(variables, frame):
    x = frame.astype(jnp.float32) / 255
    x = jax.nn.relu(_conv(x, variables["stem"], 2))
    x = jax.nn.relu(_conv(x, variables["body"]))
    return _conv(x, variables["head"])


def _variables():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"stem": (3, 3, 3, 4), "body": (3, 3, 4, 4), "head": (1, 1, 4, 2)}
    return {
        n: 0.5 * jax.random.normal(k, s) for (n, s), k in zip(shapes.items(), keys, strict=True)
    }


def _scene(seed, base):
    noise = np.random.default_rng(seed).integers(0, 60, SHAPE[1:])
    return (base + noise).astype(np.uint8)


def _clip(scenes, frames=12):
    """`(T, 2, H, W, 3)`; `scenes` gives stream b's picture at frame t."""
    return jnp.asarray(np.stack([np.stack([scenes(t, b) for b in (0, 1)]) for t in range(frames)]))


def _run(policies, clip, gate=None, streams=None, network_policy=None):
    """Reports of a compiled scan, and each frame's firing share of the first layer."""
    variables = _variables()
    net = skip(
        _network, gate=gate or InputNormGate(0.02, block=4), policy=network_policy or Previous()
    )
    guard = Guard.make(net, variables, clip[0], policies)
    params, state = net.init(variables, clip[0])

    def step(carry, inputs):
        x, flags = inputs
        y, state, memory, report = guard.apply(params, *carry, x, streams=flags)
        return (state, memory), (report, state["stem"].fired.mean(axis=(1, 2)), y)

    flags = jnp.zeros(clip.shape[:2], bool) if streams is None else streams
    run = jax.jit(functools.partial(jax.lax.scan, step))
    _, (report, fired, y) = run((state, guard.init(clip[0])), (clip, flags))
    return report, np.asarray(fired), y


def test_every_period_and_streams_apart():
    """Stream 1 is reset by hand at frame 3, so its period starts there."""
    still = _clip(lambda t, b: _scene(b, 20))
    by_hand = jnp.zeros((12, 2), bool).at[3, 1].set(True)
    report, fired, _ = _run([Every(5)], still, streams=by_hand)
    np.testing.assert_array_equal(np.flatnonzero(report.fresh[:, 0]), [0, 5, 10])
    np.testing.assert_array_equal(np.flatnonzero(report.fresh[:, 1]), [0, 3, 8])
    np.testing.assert_array_equal(fired, np.asarray(report.fresh, np.float32))


def test_cut_resets_the_stream_that_was_cut():
    clip = _clip(lambda t, b: _scene(0, 20) if t < 7 or b == 1 else _scene(1, 150))
    report, fired, _ = _run([SceneCut()], clip)
    np.testing.assert_array_equal(np.flatnonzero(report.fresh[:, 0]), [0, 7])
    np.testing.assert_array_equal(np.flatnonzero(report.fresh[:, 1]), [0])
    assert fired[7, 0] == 1


def test_a_pan_is_no_cut():
    """Everything moves and the first layer fires, but the colours stay."""
    world = np.random.default_rng(0).integers(0, 200, (32, 128, 3)).astype(np.uint8)
    clip = _clip(lambda t, b: world[:, 5 * t : 5 * t + 32])
    report, fired, _ = _run([SceneCut()], clip)
    assert fired[1:].min() > 0.9
    assert report.fresh[1:].sum() == 0


def test_a_corner_that_changes_colour_is_no_cut():
    """A third of the picture turns white: colours change, most of the first layer does not fire."""

    def scene(t, b):
        picture = _scene(0, 20)
        picture[:10] = 255 if t >= 5 else picture[:10]
        return picture

    report, _, _ = _run([SceneCut(firing=0.8)], _clip(scene))
    assert report.fresh[1:].sum() == 0
    report, _, _ = _run([SceneCut(firing=0.0)], _clip(scene))
    np.testing.assert_array_equal(np.flatnonzero(report.fresh[:, 0]), [0, 5])


def test_drift_is_measured_reported_and_reset():
    """A slow fade under the threshold: Eq. 3 drifts, is caught, and is right after the reset."""
    clip = _clip(lambda t, b: np.full(SHAPE[1:], 40 + 4 * t * (b == 0), np.uint8), 15)
    report, fired, _ = _run([Drift(every=4, bound=0.3)], clip)
    drift = np.asarray(report.figures["drift/head"])
    # Measured at frames 3, 7, 11; the reset follows on the frame after the one past the bound.
    assert drift[2].max() == 0
    assert 0 < drift[3, 0] < drift[7, 0]
    past = [t for t in (3, 7, 11) if drift[t, 0] > 0.3]
    assert past
    np.testing.assert_array_equal(np.flatnonzero(report.fresh[:, 0]), [0, *(t + 1 for t in past)])
    np.testing.assert_array_equal(np.flatnonzero(report.fresh[:, 1]), [0])
    np.testing.assert_array_equal(fired[1:] == 1, report.fresh[1:])


def test_drift_without_limit_only_reports():
    clip = _clip(lambda t, b: np.full(SHAPE[1:], 40 + 4 * t, np.uint8), 10)
    report, _, y = _run([Drift(every=1, bound=float("inf"), layers=("stem", "head"))], clip)
    assert report.fresh[1:].sum() == 0
    assert set(report.figures) == {"drift/stem", "drift/head"}
    want = np.stack([_network(_variables(), x) for x in clip])
    error = np.linalg.norm((y - want).reshape(10, 2, -1), axis=2)
    error /= np.linalg.norm(want.reshape(10, 2, -1), axis=2)
    np.testing.assert_allclose(report.figures["drift/head"], error, rtol=1e-3, atol=1e-6)


def test_drift_of_a_closed_loop_is_small():
    clip = _clip(lambda t, b: np.full(SHAPE[1:], 40 + 4 * t, np.uint8), 15)
    policies = [Drift(every=5, bound=0.2)]
    report, _, _ = _run(policies, clip, network_policy=ClosedLoop())
    assert report.fresh[1:].sum() == 0
    assert 0 < report.figures["drift/head"].max() < 0.1


def test_policies_combine_and_guard_without_policies_never_resets():
    still = _clip(lambda t, b: _scene(b, 20))
    report, _, _ = _run([Every(5), SceneCut(), Drift(every=3)], still)
    np.testing.assert_array_equal(np.flatnonzero(report.fresh[:, 0]), [0, 5, 10])
    report, _, _ = _run([], still)
    np.testing.assert_array_equal(np.flatnonzero(report.fresh[:, 0]), [0])


def test_no_host_round_trip():
    """The compiled step holds no callback and no transfer."""
    variables, x = _variables(), jnp.zeros(SHAPE, jnp.uint8)
    net = skip(_network, gate=InputNormGate(0.02, block=4))
    guard = Guard.make(net, variables, x, [Every(5), SceneCut(), Drift(every=3)])
    params, state = net.init(variables, x)
    text = jax.jit(guard.apply).lower(params, state, guard.init(x), x).as_text()
    assert not any(word in text for word in ("callback", "infeed", "outfeed"))


def test_first_firing_runs_the_first_layer_only():
    variables, x = _variables(), jnp.zeros(SHAPE, jnp.uint8)
    net = skip(_network, gate=InputNormGate(0.02, block=4), implementation="dense")
    params, state = net.init(variables, x)
    jaxpr = str(jax.make_jaxpr(functools.partial(first_firing, net))(params, state, x))
    whole = str(jax.make_jaxpr(net.apply)(params, state, x))
    assert 0 < jaxpr.count("conv_general_dilated") < whole.count("conv_general_dilated") // 2
    np.testing.assert_array_equal(first_firing(net, params, state, x), [1, 1])


def test_dense_outputs_under_checkpoint():
    variables, x = _variables(), jnp.full(SHAPE, 9, jnp.uint8)
    names = ("stem", "body")
    plain = dense_outputs(_network, variables, x, names)
    rematerialised = dense_outputs(jax.checkpoint(_network), variables, x, names)
    assert sorted(plain) == ["body", "stem"]
    jax.tree.map(np.testing.assert_array_equal, plain, rematerialised)
    with pytest.raises(ValueError, match="nowhere"):
        dense_outputs(_network, variables, x, ("nowhere",))


def test_cost_of_telemetry_is_counted():
    variables, x = _variables(), jnp.zeros(SHAPE, jnp.uint8)
    net = skip(_network)
    table = net.table(variables, x)
    guard = Guard.make(net, variables, x, [Every(4), Drift(every=10)])
    np.testing.assert_allclose(guard.macs(), table.macs / 10)
    guard = Guard.make(net, variables, x, [Drift(every=10, layers=("stem",))])
    np.testing.assert_allclose(guard.macs(), table.rows[0].macs / 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Every(0), "period"),
        (lambda: SceneCut(colours=2.0), "colours"),
        (lambda: SceneCut(low=1.0, high=1.0), "low"),
        (lambda: Drift(every=0), "every"),
        (lambda: Drift(bound=0.0), "bound"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sampled_layers_must_exist():
    variables, x = _variables(), jnp.zeros(SHAPE, jnp.uint8)
    with pytest.raises(ValueError, match="nowhere"):
        Guard.make(skip(_network), variables, x, [Drift(layers=("nowhere",))])
    with pytest.raises(ValueError, match="left all dense"):
        Guard.make(skip(_network, [("*", None)]), variables, x, [])
