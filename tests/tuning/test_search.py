"""Calibration: predictions against what happens, budgets kept, better than one threshold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import skip
from skipconv_jax.ops import (
    Accumulate,
    ClosedLoop,
    InputNormGate,
    Keyframe,
    OutputNormGate,
    Previous,
)
from skipconv_jax.transform import Rule
from skipconv_jax.tuning import (
    Budget,
    GatePlan,
    Runner,
    calibrate,
    choose,
    choose_for_macs,
    measure_sensitivity,
)
from skipconv_jax.tuning.choose import price_range
from skipconv_jax.tuning.search import gate_params, net_for, relative_error, settle

FRAMES = 10


def _conv(x, kernel, stride=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _network(variables, x):
    """Layers whose activations differ in scale by a hundred, and in what they are worth."""
    a = jax.nn.relu(_conv(x, variables["a"], 2))
    b = jax.nn.relu(_conv(10 * a, variables["b"]))
    c = jax.nn.relu(_conv(0.1 * a, variables["c"]))
    return _conv(b, variables["d"]) + _conv(c, variables["e"])


@pytest.fixture(scope="module")
def variables():
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = {
        "a": (3, 3, 3, 8),
        "b": (3, 3, 8, 8),
        "c": (3, 3, 8, 8),
        "d": (3, 3, 8, 4),
        "e": (3, 3, 8, 4),
    }
    return {
        n: 0.3 * jax.random.normal(k, s) for (n, s), k in zip(shapes.items(), keys, strict=True)
    }


def _clip(seed, frames=FRAMES):
    """Two streams of a still, noisy scene in which a square moves."""
    rng = np.random.default_rng(seed)
    scene = rng.normal(size=(2, 32, 32, 3))
    clip = np.repeat(scene[None], frames, axis=0)
    for t in range(frames):
        clip[t, :, 8:18, 2 + 2 * t : 10 + 2 * t] = rng.normal(size=(2, 1, 1, 3)) + 1.5
    clip = clip + 0.02 * rng.normal(size=clip.shape)
    return [jnp.asarray(x, jnp.float32) for x in clip]


@pytest.mark.parametrize("policy", [Previous(), ClosedLoop(), Accumulate(), Keyframe()])
def test_one_layer_is_predicted(policy):
    """For a single convolution the simulation is the real thing: firing exactly."""
    variables = {"k": jax.random.normal(jax.random.key(0), (3, 3, 3, 4))}

    def fn(v, x):
        return _conv(x, v["k"])

    clip = _clip(0)
    found = measure_sensitivity(fn, variables, clip, InputNormGate, policy, blocks=(4,), probes=32)
    curve = found.curves["k", 4]
    net = skip(fn, gate=InputNormGate(block=4), policy=policy, implementation="dense")
    runner = Runner(net, variables, clip)
    for k in (2, 6, 9):
        seen = runner({"k": {"threshold": jnp.float32(curve.thresholds[k])}})
        np.testing.assert_allclose(seen.macs / runner.dense_macs, curve.firing[k], atol=1e-6)
        # ||y||^2 leaves the reference frame out, the runner's error does not.
        size = sum(float(jnp.sum(fn(variables, x) ** 2)) for x in clip)
        later = sum(float(jnp.sum(fn(variables, x) ** 2)) for x in clip[1:])
        np.testing.assert_allclose(seen.error**2 * size / later, curve.damage[k], rtol=0.25)


@pytest.fixture(scope="module")
def found(variables):
    return measure_sensitivity(
        _network, variables, _clip(1), InputNormGate, ClosedLoop(), blocks=(4, 8), probes=2
    )


def test_curves(found):
    assert {name for name, _ in found.curves} == set("abcde")
    assert found.passes == 2
    for curve in found.curves.values():
        assert (np.diff(curve.thresholds) >= 0).all()
        assert (np.diff(curve.firing) <= 1e-6).all()
        assert curve.damage[0] < curve.damage[-1]
    for name in "abcde":
        assert found.curves[name, 8].firing[6] > 0


def test_choice_follows_the_price(found):
    prices = np.geomspace(*price_range(found), 12)
    choices = [choose(found, float(price)) for price in prices]
    counts, damages = [c.macs for c in choices], [c.damage for c in choices]
    assert (np.diff(counts) >= 0).all()
    assert (np.diff(damages) <= 0).all()
    assert counts[0] < 0.2 * counts[-1]
    middle = (counts[0] + counts[-1]) / 2
    price, choice = choose_for_macs(found, middle)
    assert choice.macs <= middle
    assert choose(found, 1.05 * price).macs >= choice.macs


def test_settled_blocks_and_dense_layers(found):
    fixed = {"a": 8, "b": 4, "c": None, "d": 4, "e": 8}
    choice = choose(found, 1e6, blocks=fixed)
    assert choice.options["c"] is None
    assert [choice.options[n][0] for n in "abde"] == [8, 4, 4, 8]
    # Time counts halos and masks: a layer that always fires is better left dense.
    blocks = settle(found, Budget("ms", 1.0))
    assert set(blocks) == set("abcde")
    careful = choose(found, price_range(found)[1], allow_dense=True, cost=_expensive)
    assert all(option is None for option in careful.options.values())


def _expensive(site, block, firing):
    return site.macs * (firing + 1.5)


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_macs_budget_is_kept_and_checked(variables, found, share):
    dense = sum(site.macs for site in found.sites)
    budget = Budget("macs", share * dense)
    plan = calibrate(
        _network, variables, _clip(1), _clip(2), budget, policy=ClosedLoop(), found=found
    )
    seen, checked = plan.note("calibration"), plan.note("held_out")
    assert 0.5 * budget.limit < seen["macs"] <= budget.limit
    assert checked["macs"] == pytest.approx(seen["macs"], rel=0.5)
    assert isinstance(checked["kept"], bool)
    assert plan.note("skipped_runs") <= 9
    net = skip(_network, plan)
    assert net.table(variables, _clip(1)[0]).macs == dense


def test_drop_budget_without_and_with_labels(variables, found):
    plan = calibrate(
        _network, variables, _clip(1), _clip(2), Budget("drop", 0.05), policy=ClosedLoop(),
        found=found,
    )  # fmt: skip
    seen = plan.note("calibration")
    assert 0 < seen["drop"] <= 0.05
    assert seen["drop"] == pytest.approx(seen["error"], rel=1e-4)
    assert seen["macs"] < 0.9 * plan.note("dense_macs")

    def accuracy(outputs, dense):
        """Share of positions with the right channel on top; the dense network is right."""
        return float((outputs.argmax(-1) == dense.argmax(-1)).mean())

    labelled = calibrate(
        _network, variables, _clip(1), _clip(2), Budget("drop", 0.05), policy=ClosedLoop(),
        found=found, score=accuracy,
    )  # fmt: skip
    assert labelled.note("calibration")["drop"] <= 0.05


def test_budget_that_cannot_be_kept(variables, found):
    with pytest.raises(ValueError, match="can't be kept"):
        calibrate(
            _network, variables, _clip(1), _clip(2), Budget("macs", 1.0), policy=ClosedLoop(),
            found=found, evaluations=2,
        )  # fmt: skip


def test_time_budget_is_measured(variables, found):
    plan = calibrate(
        _network, variables, _clip(1), _clip(2), Budget("ms", 1e4), policy=ClosedLoop(),
        found=found, evaluations=2,
    )  # fmt: skip
    assert 0 < plan.note("calibration")["ms"] < 1e4


@pytest.mark.parametrize("gate", [InputNormGate, OutputNormGate])
def test_beats_the_best_shared_threshold(variables, gate):
    """At equal multiply-accumulates on held-out frames, for both norm gates and their scales."""
    policy, clip, other = ClosedLoop(), _clip(1), _clip(2)
    found = measure_sensitivity(_network, variables, clip, gate, policy, blocks=(4,), probes=4)
    settled = {site.name: 4 for site in found.sites}
    net = net_for(_network, settled, gate, policy, found, "dense")
    runner = Runner(net, variables, other)
    low = min(c.thresholds[0] for c in found.curves.values())
    high = max(c.thresholds[-1] for c in found.curves.values())
    shared = [runner.shared(t) for t in np.geomspace(low, high, 14)]
    shares, errors = np.array([(m.macs, m.error) for m in shared])[::-1].T
    for share in (0.35, 0.5):
        price, _ = choose_for_macs(found, share * runner.dense_macs)
        seen = runner(gate_params(choose(found, price, blocks=settled)))
        best = np.exp(np.interp(seen.macs, shares, np.log(np.maximum(errors, 1e-9))))
        assert seen.error < best


@pytest.mark.parametrize(
    ("text", "kind", "limit"),
    [
        ("macs=0.5", "macs", 5e8),
        ("macs=25%", "macs", 2.5e8),
        ("drop=0.01", "drop", 0.01),
        ("error=0.03", "error", 0.03),
        ("ms=12", "ms", 12),
    ],
)
def test_budgets_are_read(text, kind, limit):
    assert Budget.parse(text, 1e9) == Budget(kind, limit)


@pytest.mark.parametrize("text", ["", "macs", "macs=x", "drop=5%", "watts=3", "macs=-1", "ms=nan"])
def test_bad_budgets_are_refused(text):
    with pytest.raises(ValueError, match=r"budget|limit"):
        Budget.parse(text, 1e9)


def test_what_cannot_be_measured_is_refused(variables):
    with pytest.raises(ValueError, match="two"):
        measure_sensitivity(_network, variables, _clip(1)[:1], InputNormGate, ClosedLoop())


def test_relative_error_over_a_tree():
    tree = {"a": np.ones(3), "b": [np.full(2, 2.0)]}
    assert relative_error(tree, tree) == 0
    assert relative_error(jax.tree.map(lambda a: 1.1 * a, tree), tree) == pytest.approx(0.1)


def test_plan_survives_the_file(variables, found, tmp_path):
    blocks = settle(found, Budget("drop", 0.1))
    gates = {n: None if b is None else InputNormGate(0.1, b) for n, b in blocks.items()}
    plan = GatePlan.make(found.sites, gates, ClosedLoop(), budget={"kind": "drop", "limit": 0.1})
    plan.save(tmp_path / "plan.json")
    net = skip(_network, GatePlan.load(tmp_path / "plan.json"))
    frames = _clip(1)[:3]
    params, state = net.init(variables, frames[0])
    gated = {n for n, b in blocks.items() if b is not None}
    assert set(params["gates"]) == gated
    assert all(float(p["threshold"]) == np.float32(0.1) for p in params["gates"].values())
    rules = [(n, None if g is None else Rule(g, ClosedLoop())) for n, g in gates.items()]
    twin = skip(_network, rules)
    _, other = twin.init(variables, frames[0])
    step, want = jax.jit(net.apply), jax.jit(twin.apply)
    for frame in frames:
        y, state = step(params, state, frame)
        expected, other = want(params, other, frame)
        np.testing.assert_array_equal(y, expected)
    # Gates that never fire, or always do, would say nothing of what the file holds.
    fired = np.concatenate([np.ravel(state[n].fired) for n in sorted(gated)])
    assert 0 < fired.mean() < 1
    dense = _network(variables, frames[-1])
    assert 0 < relative_error(dense, y) < 0.5
