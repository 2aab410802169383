"""One list of convolutions, with the same names for whoever reads the network."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import skipconv_jax
from skipconv_jax import native, skip
from skipconv_jax.ops import ClosedLoop, InputNormGate
from skipconv_jax.plans.native import compile_plan
from skipconv_jax.program import fold as g
from skipconv_jax.program.walk import find_sites

_FRAME = jax.random.normal(jax.random.key(0), (1, 12, 12, 4))


def _conv(x: jax.Array, kernel: jax.Array, precision: Any = None) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    )


def _kernels(*names: str) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(1), len(names))
    return {n: jax.random.normal(k, (3, 3, 4, 4)) * 0.2 for n, k in zip(names, keys, strict=True)}


def _first_off_the_frame(v: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """One kernel on a map that is not the frame, then twice on the frame."""
    prior = _conv(jnp.linspace(0, 1, x.size).reshape(x.shape), v["k"])
    return _conv(jax.nn.relu(_conv(x, v["k"]) + prior), v["k"])


def test_every_reader_has_the_names_of_the_sites() -> None:
    variables = _kernels("k")
    sites = find_sites(_first_off_the_frame, variables, _FRAME)
    assert [s.name for s in sites] == ["k", "k@1", "k@2"]
    assert [bool(s.dense_because) for s in sites] == [True, False, False]
    graph = g.build(_first_off_the_frame, variables, _FRAME)
    assert [n.name for n in graph.nodes if isinstance(n, g.ConvNode)] == ["k@1", "k@2"]


@pytest.mark.skipif(not native.available(), reason="the native engine is not built")
@pytest.mark.parametrize("rules", [(), (("k@2", None),)])
def test_a_rule_reaches_the_same_call_natively(rules: Any) -> None:
    variables = _kernels("k")
    gate = InputNormGate(0.05, block=4)
    net = skip(_first_off_the_frame, rules, gate=gate, policy=ClosedLoop())
    params, state = net.init(variables, _FRAME)
    plan = compile_plan(net, params, _FRAME)
    plan_state, apply = plan.init_state(), jax.jit(net.apply)
    for shift in range(3):
        frame = _FRAME.at[:, 2 * shift : 2 * shift + 3].add(0.2)
        y, state = apply(params, state, frame)
        got, plan_state, masks = plan.step(plan_state, frame)
        np.testing.assert_allclose(got, y, atol=1e-5)
        assert set(plan.fired(masks)) == set(state)


def _one_unused(v: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    _conv(x, v["unused"])
    return _conv(x, v["used"])


def test_a_convolution_nobody_reads_is_dead_code() -> None:
    variables = _kernels("used", "unused")
    assert [s.name for s in find_sites(_one_unused, variables, _FRAME)] == ["used"]
    net = skip(_one_unused)
    params, state = net.init(variables, _FRAME)
    assert set(state) == {"used"}
    plan = compile_plan(net, params, _FRAME)
    y, _, masks = plan.step(plan.init_state(), _FRAME)
    assert set(plan.fired(masks)) == {"used"}
    np.testing.assert_allclose(y, net.apply(params, state, _FRAME)[0], atol=1e-5)


def test_precision_reaches_the_folded_convolution() -> None:
    def fn(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return _conv(x, kernel, jax.lax.Precision.HIGHEST)

    kernel = _kernels("k")["k"]
    (site,) = find_sites(fn, kernel, _FRAME)
    (node,) = g.build(fn, kernel, _FRAME).nodes
    assert isinstance(node, g.ConvNode)
    assert node.conv == site.conv
    assert node.conv.precision == (jax.lax.Precision.HIGHEST,) * 2


def test_one_module_takes_jaxprs_apart() -> None:
    root = pathlib.Path(skipconv_jax.__file__).parent
    found = [p.relative_to(root).as_posix() for p in root.rglob("*.py") if ".eqns" in p.read_text()]
    assert found == ["program/jaxprs.py"]
