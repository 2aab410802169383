"""Calibration by runs of the skipped network: a small network on both engines' contract."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import skip
from skipconv_jax.ops import ClosedLoop, InputNormGate
from skipconv_jax.tasks.base import squared_error
from skipconv_jax.tuning import Budget, GatePlan
from skipconv_jax.tuning.measured import Material, calibrate_measured, patterns
from skipconv_jax.tuning.probe import probe
from skipconv_jax.tuning.scene import Scene, scene
from skipconv_jax.tuning.sensitivity import network_sites
from skipconv_jax.tuning.trials import Trials, thresholds


def _conv(x, kernel, stride=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _network(variables, x):
    x = jax.nn.relu(_conv(x, variables["a"], 2))
    return _conv(jax.nn.relu(_conv(x, variables["b"])), variables["c"])


@pytest.fixture(scope="module")
def variables():
    shapes = {"a": (3, 3, 3, 4), "b": (3, 3, 4, 4), "c": (1, 1, 4, 2)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        n: 0.4 * jax.random.normal(k, s) for (n, s), k in zip(shapes.items(), keys, strict=True)
    }


def _clip(seed, frames=8):
    """A still, noisy scene in which a square moves."""
    rng = np.random.default_rng(seed)
    clip = np.repeat(rng.normal(size=(1, 1, 32, 32, 3)), frames, axis=0)
    for t in range(frames):
        clip[t, :, 8:18, 2 + 2 * t : 10 + 2 * t] = 1.5
    return (clip + 0.02 * rng.normal(size=clip.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def trials(variables):
    net = skip(_network, gate=InputNormGate(block=4), policy=ClosedLoop())
    return Trials(net, variables, _clip(1), squared_error, read=lambda y: y.mean(axis=-1))


def test_a_trial_is_what_the_network_does(trials, variables):
    seen, read = trials.read(thresholds(trials.names, 0.05))
    net = skip(_network, gate=InputNormGate(0.05, block=4), policy=ClosedLoop())
    clip = jnp.asarray(_clip(1))
    params, state = net.init(variables, clip[0])
    outputs, shares = [], []
    step = jax.jit(net.apply)
    for x in clip:
        y, state = step(params, state, x)
        outputs.append(np.asarray(y))
        shares.append([float(state[name].fired.mean()) for name in trials.names])
    dense = [np.asarray(_network(variables, x)) for x in clip]
    error = sum(((a - b) ** 2).sum() for a, b in zip(outputs[1:], dense[1:], strict=True))
    assert seen.loss == pytest.approx(error / sum((b**2).sum() for b in dense[1:]), rel=1e-3)
    assert 0 < seen.loss < 0.1
    np.testing.assert_allclose(seen.firing, np.mean(shares[1:], axis=0), atol=1e-6)
    costs = np.asarray([row.macs for row in trials.plan.table.rows])
    assert seen.macs == pytest.approx((costs * seen.firing).sum(), rel=1e-5)
    np.testing.assert_allclose(read, [y.mean(axis=-1) for y in outputs], atol=1e-5)
    assert trials(thresholds(trials.names, 0.05)).loss == pytest.approx(seen.loss)
    assert trials.milliseconds(thresholds(trials.names, 0.05)) > 0
    assert trials.whole_milliseconds(3) > 0


def test_the_same_programs_on_another_clip(trials):
    other = trials.on(_clip(2))
    gates = thresholds(trials.names, 0.05)
    assert other(gates).loss != trials(gates).loss
    with pytest.raises(ValueError, match="at least two"):
        trials.on(_clip(2)[:1])


def test_nothing_to_be_found_is_no_loss(variables):
    net = skip(_network, gate=InputNormGate(block=4))

    def nothing(y, dense):
        return jnp.zeros(len(y)), jnp.zeros(len(y))

    assert (
        Trials(net, variables, _clip(1), nothing, engine="plain")(
            {n: {"threshold": np.float32(0.1)} for n in "abc"}
        ).loss
        == 0
    )


def _material(variables, **changes):
    options = {"clip": _clip(1), "held_out": _clip(2), "loss": squared_error}
    return Material(_network, variables, **{**options, **changes})


def test_a_clip_that_shows_nothing_is_refused(variables):
    """Any threshold keeps the budget there; the search would raise them without end."""
    still = np.repeat(_clip(1)[:1], 4, axis=0)
    with pytest.raises(ValueError, match=r"`clip` must show .* change.*its error is 0, within"):
        calibrate_measured(
            _material(variables, clip=still), Budget("error", 0.05), policy=ClosedLoop()
        )


@pytest.fixture(scope="module")
def plan(variables):
    lines = []
    dense = sum(s.macs for s in network_sites(_network, variables, jnp.asarray(_clip(1)[0])))
    found = calibrate_measured(
        _material(variables),
        Budget("macs", 0.4 * dense),
        policy=ClosedLoop(),
        blocks=(4, 2),
        margin=0.1,
        rounds=((4, 1.6),),
        progress=lines.append,
    )
    return found, lines, dense


def test_a_budget_is_kept_with_its_margin(plan, variables, tmp_path):
    found, lines, dense = plan
    seen, held = found.note("calibration"), found.note("held_out")
    assert 0.2 * dense < seen["macs"] <= 0.9 * 0.4 * dense
    assert held["kept"] == (held["macs"] <= 0.4 * dense)
    assert found.note("gain") >= 1
    assert sum("blocks" in line for line in lines) == 3
    found.save(tmp_path / "plan.json")
    again = GatePlan.load(tmp_path / "plan.json")
    assert again == found
    # What the plan says is what a network under it does, in blocks that the plan holds.
    measured = Trials(skip(_network, again), variables, _clip(1), squared_error)
    gates = {n: {"threshold": np.float32(layer.gate.threshold)} for n, layer in again.layers}
    assert measured(gates).macs == pytest.approx(seen["macs"], rel=1e-3)


def test_the_sweep_shows_the_cliff(plan):
    sweep = plan[0].note("sweep")
    for rows in sweep.values():
        shares, losses = ([row[key] for row in rows] for key in ("share", "loss"))
        assert (np.diff(shares) <= 0).all()
        assert losses[0] < losses[-1]
    at_one = next(row for row in sweep["calibrated"] if row["at"] == 1)
    # The sweep is written to five digits behind the point.
    assert at_one["loss"] == pytest.approx(plan[0].note("held_out")["error"], abs=1e-5)


def test_margins_and_budgets_that_cannot_be(variables):
    with pytest.raises(ValueError, match="margin"):
        calibrate_measured(_material(variables), Budget("ms", 1.0), policy=ClosedLoop(), margin=1.0)


def test_blocks_by_resolution(variables):
    sites = network_sites(_network, variables, jnp.zeros((1, 32, 32, 3)))
    found = patterns(sites, (2, 8))
    assert [set(sizes.values()) for sizes in found] == [{8}, {2}, {2}]
    wide = network_sites(_network, variables, jnp.zeros((1, 64, 64, 3)))
    assert set(patterns(wide, (2, 8))[-1].values()) == {8}
    assert len(patterns(sites, (4,))) == 1


def _street(shift=0, noise=0.0, frames=4):
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 255, (12, 40)).repeat(8, 0).repeat(8, 1)
    images = []
    for t in range(frames):
        image = wide[:, 40 + shift * t :][:, :160, None].repeat(3, 2)
        image = np.clip(image + noise * rng.normal(size=image.shape), 0, 255)
        images.append(image.astype(np.uint8))
    return images


def test_what_a_scene_says():
    still, noisy, moving = scene(_street()), scene(_street(noise=6)), scene(_street(shift=3))
    assert still.why_not() == ""
    assert still.noise == 0
    # Of three grey weights, 6 levels become 4; values near black and white are cut.
    assert 2.5 < noisy.noise < 5
    assert "noisy" in noisy.why_not()
    assert moving.shift == pytest.approx(100 * 3 / 160, rel=0.2)
    assert "camera moves" in moving.why_not()
    with pytest.raises(ValueError, match="two frames"):
        scene(_street()[:1])


def _stub(ms, dense_ms, losses):
    """Trials of set times and losses: a verdict must not hang on this machine's."""

    class Stub:
        names, dense_macs = ("a",), 100.0

        class plan:
            engine, why = "stub", "a test"

        def dense(self):
            return None

        def whole_milliseconds(self):
            return dense_ms

        def milliseconds(self, gates, rounds):
            return ms[float(gates["a"]["threshold"])]

        def read(self, gates):
            loss = losses[float(gates["a"]["threshold"])]
            return type("Seen", (), {"macs": 100 * math.exp(-loss), "loss": loss}), loss

    return Stub()


def test_the_verdict():
    quiet, moving = Scene(0.0, 0.5, 0.1), Scene(2.0, 0.5, 0.9)
    losses = {0.125: 0.001, 0.25: 0.02, 0.5: 0.4}
    good = probe(_stub({0.125: 8.0, 0.25: 4.0, 0.5: 1.0}, 10.0, losses), quiet, tried=losses)
    assert good.pays
    assert good.best.threshold == 0.25
    assert "2.50x the speed at a threshold of 0.25" in good.verdict()
    slow = probe(_stub({0.125: 9.5, 0.25: 9.0, 0.5: 1.0}, 10.0, losses), moving, tried=losses)
    assert not slow.pays
    assert "does not pay here: the camera moves" in slow.verdict()
    ones = dict.fromkeys(losses, 1.0)
    lost = probe(_stub(ones, 10.0, ones), quiet, tried=losses)
    assert lost.best is None
    assert "every threshold tried changes" in lost.verdict()
    with pytest.raises(ValueError, match="positive"):
        probe(_stub({}, 1.0, {}), quiet, tried=(0.0,))
