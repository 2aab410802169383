"""Plans: written, read, applied, and refused for another network."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import skip
from skipconv_jax.ops import (
    ClosedLoop,
    ConvNormGate,
    GumbelGate,
    InputNormGate,
    OutputNormGate,
    Previous,
)
from skipconv_jax.tuning import GatePlan
from skipconv_jax.tuning.sensitivity import network_sites


def _network(variables, x):
    for name in sorted(variables):
        x = jax.lax.conv_general_dilated(
            x, variables[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    return x


def _variables(names):
    return {name: jnp.ones((3, 3, 2, 2)) for name in names}


@pytest.fixture
def plan():
    sites = network_sites(_network, _variables("abcd"), jnp.zeros((1, 8, 8, 2)))
    gates = {
        "a": InputNormGate(0.5, block=4, reduction="sum"),
        "b": OutputNormGate(0.25, block=2),
        "d": ConvNormGate(0.1, block=8),
    }
    return GatePlan.make(sites, gates, ClosedLoop(), budget={"kind": "macs", "limit": 3.0})


def test_round_trip(plan, tmp_path):
    path = tmp_path / "plan.json"
    plan.save(path)
    assert GatePlan.load(path) == plan
    assert hash(GatePlan.load(path)) == hash(plan)
    assert plan.note("budget") == {"kind": "macs", "limit": 3.0}
    assert plan.note("nothing") is None
    assert json.loads(path.read_text())["layers"]["c"]["gate"] is None


def test_a_former_name_of_the_policy_is_understood(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    whole = json.loads(text) | {"policy": "reference"}
    (tmp_path / "old.json").write_text(json.dumps(whole))
    old = GatePlan.load(tmp_path / "old.json")
    assert old.policy == "closed_loop"
    assert {type(rule.policy) for _, rule in old.rules() if rule is not None} == {ClosedLoop}


def test_skip_applies_it(plan):
    variables, x = _variables("abcd"), jnp.zeros((1, 8, 8, 2))
    net = skip(_network, plan, policy=Previous())
    found = net.layers(variables, x)
    assert list(found) == ["a", "b", "d"]
    assert found["b"][1].gate == OutputNormGate(0.25, block=2)
    assert all(rule.policy == ClosedLoop() for _, rule in found.values())
    params, state = net.init(variables, x)
    assert float(params["gates"]["a"]["threshold"]) == 0.5
    y, _ = jax.jit(net.apply)(params, state, x + 1)
    np.testing.assert_allclose(y, _network(variables, x + 1), rtol=1e-5)


def _twice(variables, x):
    return _network(variables, _network(variables, x))


@pytest.mark.parametrize("gated", ["a", "a@1"])
def test_calls_of_one_layer_have_gates_of_their_own(gated):
    variables, x = _variables("a"), jnp.zeros((1, 8, 8, 2))
    sites = network_sites(_twice, variables, x)
    assert [site.name for site in sites] == ["a", "a@1"]
    made = GatePlan.make(sites, {gated: InputNormGate(0.5, block=4)}, ClosedLoop())
    assert list(skip(_twice, made).layers(variables, x)) == [gated]
    blocks = {"a": 2, "a@1": 8}
    both = GatePlan.make(
        sites, {n: InputNormGate(block=b) for n, b in blocks.items()}, ClosedLoop()
    )
    layers = skip(_twice, both).layers(variables, x)
    assert {name: rule.gate.block for name, (_, rule) in layers.items()} == blocks


def test_names_with_special_characters(tmp_path):
    """Names are not patterns: brackets and stars mean themselves."""
    variables, x = _variables(["[a]*", "[a]b"]), jnp.zeros((1, 8, 8, 2))
    sites = network_sites(_network, variables, x)
    plan = GatePlan.make(sites, {"[a]*": InputNormGate(0.5, block=4)}, ClosedLoop())
    assert list(skip(_network, plan).layers(variables, x)) == ["[a]*"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("abcde", "the plan has not: e"),
        ("abc", "the network has not: d"),
        ("abcx", "the plan has not: x; that the network has not: d"),
    ],
)
def test_another_network_is_refused_by_name(plan, names, message):
    net = skip(_network, plan)
    for use in (net.table, net.layers, net.init):
        with pytest.raises(ValueError, match=message):
            use(_variables(names), jnp.zeros((1, 8, 8, 2)))


def test_other_kernels_are_refused_by_name(plan):
    variables = {**_variables("abc"), "d": jnp.ones((1, 1, 2, 2))}
    with pytest.raises(ValueError, match="have other kernels: d"):
        skip(_network, plan).table(variables, jnp.zeros((1, 8, 8, 2)))


def test_many_names_are_cut_short(plan):
    names = [f"z{i:02}" for i in range(30)]
    with pytest.raises(ValueError, match="and 22 more"):
        skip(_network, plan).table(_variables(names), jnp.zeros((1, 8, 8, 2)))


def test_what_a_plan_cannot_hold(plan, tmp_path):
    sites = network_sites(_network, _variables("a"), jnp.zeros((1, 8, 8, 2)))
    learned = GatePlan.make(sites, {"a": GumbelGate(block=4)}, ClosedLoop())
    with pytest.raises(ValueError, match="must be one of"):
        learned.save(tmp_path / "plan.json")
    with pytest.raises(ValueError, match="policy"):
        GatePlan((), "nothing")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "skipconv_jax plan 1"}', "{nonsense"])
def test_broken_files_are_refused(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"calibrate\.py"):
        GatePlan.load(path)
    with pytest.raises(ValueError, match=r"calibrate\.py"):
        GatePlan.load(tmp_path / "missing.json")


def test_compiled_once(plan):
    """A plan is hashable, so a network under it is a static argument."""
    variables, x = _variables("abcd"), jnp.zeros((1, 8, 8, 2))
    net = skip(_network, plan)
    run = jax.jit(lambda net, p, s, x: net.apply(p, s, x), static_argnums=0)
    params, state = net.init(variables, x)
    run(net, params, state, x)
    run(skip(_network, plan), params, state, x)
    assert run._cache_size() == 1
