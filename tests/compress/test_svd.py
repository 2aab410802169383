"""Spatial and weight SVD: exact at full rank, best at every other, ordinary networks after."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import skip
from skipconv_jax.compress import Factor, approximate, factorization, factors, find_kernels
from skipconv_jax.compress.svd import METHODS, factored_macs, full_rank, largest_rank, why_not
from skipconv_jax.ops import InputNormGate


def one_conv(features, window, **kwargs):
    model = nn.Conv(features, window, **kwargs)

    def fn(variables, x):
        return model.apply(variables, x)

    return model, fn


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("window", "kwargs", "shape"),
    [
        ((3, 3), {}, (2, 9, 7, 4)),
        ((3, 3), {"strides": (2, 2), "padding": ((1, 1), (1, 1))}, (1, 8, 10, 4)),
        ((3, 3), {"kernel_dilation": (2, 1), "use_bias": False}, (1, 9, 9, 4)),
        ((5, 3), {"strides": (2, 1), "padding": "VALID", "kernel_dilation": (1, 2)}, (1, 13, 9, 4)),
        ((1, 3), {"padding": ((0, 0), (2, 0))}, (1, 5, 9, 4)),
    ],
)
def test_exact_at_full_rank(drawn, method, window, kwargs, shape):
    model, fn = one_conv(6, window, **kwargs)
    x = jax.random.normal(jax.random.key(0), shape)
    dense = drawn(jax.eval_shape(model.init, jax.random.key(0), x), 3)
    # A bare module has no name: put it under one, as in a network.
    dense = {"params": {"layer": dense["params"]}}
    run = lambda v, x: fn({"params": v["params"]["layer"]}, x)  # noqa: E731
    kernels, _ = find_kernels(run, dense, x)
    plan = {"layer": Factor(method, full_rank(kernels["layer"].conv, method))}
    compressed = factorization(kernels, plan)
    y = compressed.wrap(run)(compressed.variables(dense), x)
    np.testing.assert_allclose(y, run(dense, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_rank_r_is_the_best_approximation(method):
    kernel = np.random.default_rng(0).normal(size=(3, 5, 4, 6))
    order = (2, 0, 3, 1) if method == "spatial" else (2, 3, 0, 1)
    rows = 12 if method == "spatial" else 4
    singular = np.linalg.svd(kernel.transpose(order).reshape(rows, -1), compute_uv=False)
    for rank in (1, 2, 4):
        error = np.linalg.norm(approximate(kernel, Factor(method, rank)) - kernel)
        # Eckart and Young: what is lost are the smallest singular values.
        np.testing.assert_allclose(error, np.linalg.norm(singular[rank:]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 2, 3, 4, 6)])
def test_weight_svd_takes_one_and_three_axes(rank, shape):
    kernel = np.random.default_rng(0).normal(size=shape)
    first, second = factors(kernel, Factor("weight", rank))
    assert first.shape == (1,) * (len(shape) - 2) + (4, rank)
    assert second.shape == (*shape[:-2], rank, 6)
    product = np.einsum(
        "...ir,...rc->...ic", np.broadcast_to(first, (*shape[:-2], 4, rank)), second
    )
    np.testing.assert_allclose(product, approximate(kernel, Factor("weight", rank)), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_factored_network(network, method):
    model, dense, x = network
    kernels, total = find_kernels(model.apply, dense, x)
    plan = {
        name: Factor(method, 2) for name, kernel in kernels.items() if not why_not(kernel, method)
    }
    assert sorted(plan) == sorted(
        ["inner", "outer", "stem"] if method == "spatial" else ["head", "inner", "outer", "stem"]
    )
    compressed = factorization(kernels, plan)
    variables, fn = compressed.variables(dense), compressed.wrap(model.apply)
    # The same function as the dense network with its kernels of low rank.
    low = {**dense, "params": dict(dense["params"])}
    for name, factor in plan.items():
        kernel = jnp.asarray(approximate(dense["params"][name]["kernel"], factor))
        low["params"][name] = {**dense["params"][name], "kernel": kernel}
    np.testing.assert_allclose(fn(variables, x), model.apply(low, x), rtol=1e-4, atol=1e-4)
    # Its cost is the trace's.
    table = skip(fn).table(variables, x)
    saved = sum(kernels[n].macs - factored_macs(kernels[n], f) for n, f in plan.items())
    assert table.macs == total - saved
    assert {"inner/first", "inner/second", "grouped"} <= {row.name for row in table.rows}
    assert all(row.skipped for row in table.rows)


def test_factored_network_skips(network):
    model, dense, x = network
    kernels, _ = find_kernels(model.apply, dense, x)
    compressed = factorization(
        kernels, {"stem": Factor("spatial", 3), "outer": Factor("weight", 4)}
    )
    variables, fn = compressed.variables(dense), compressed.wrap(model.apply)
    clip = jax.random.normal(jax.random.key(5), (3, *x.shape))
    net = skip(fn, gate=InputNormGate(0.0, block=4))
    params, state = net.init(variables, x)
    apply, run = jax.jit(net.apply), jax.jit(fn)
    for frame in clip:
        y, state = apply(params, state, frame)
        np.testing.assert_allclose(y, run(variables, frame), rtol=1e-4, atol=1e-4)


def test_factored_network_trains(network):
    model, dense, x = network
    kernels, _ = find_kernels(model.apply, dense, x)
    compressed = factorization(kernels, {"outer": Factor("spatial", 3)})

    def forward(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    def loss(variables):
        y, stats = compressed.wrap(forward)(variables, x)
        return (y**2).mean(), stats

    grads, stats = jax.jit(jax.grad(loss, has_aux=True))(compressed.variables(dense))
    outer = grads["params"]["outer"]
    assert outer["first"]["kernel"].shape == (3, 1, 12, 3)
    assert float(jnp.abs(outer["first"]["kernel"]).min()) > 0
    assert float(jnp.abs(outer["second"]["kernel"]).min()) > 0
    before = dense["batch_stats"]["outer_bn"]["mean"]
    assert not jnp.array_equal(stats["batch_stats"]["outer_bn"]["mean"], before)


def test_shared_kernels_are_factored_at_every_use():
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x):
            conv = nn.Conv(4, (3, 3), name="conv")
            return conv(conv(x))

    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    dense = Shared().init(jax.random.key(1), x)
    kernels, total = find_kernels(Shared().apply, dense, x)
    assert len(kernels["conv"].uses) == 2
    assert kernels["conv"].macs == total == 2 * 9 * 4 * 4 * 64
    compressed = factorization(kernels, {"conv": Factor("spatial", 12)})
    y = compressed.wrap(Shared().apply)(compressed.variables(dense), x)
    np.testing.assert_allclose(y, Shared().apply(dense, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0.1, 0.35, 0.9])
def test_largest_rank_fits_and_no_larger_one_does(network, method, ratio):
    model, dense, x = network
    kernel = find_kernels(model.apply, dense, x)[0]["inner"]
    rank = largest_rank(kernel, method, ratio)
    most = full_rank(kernel.conv, method)
    assert rank == 0 or factored_macs(kernel, Factor(method, rank)) <= ratio * kernel.macs
    if rank < most:
        assert factored_macs(kernel, Factor(method, rank + 1)) > ratio * kernel.macs


def test_computed_kernels_stay():
    class Standardised(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = self.param("kernel", nn.initializers.normal(), (3, 3, 3, 4))
            kernel = kernel - kernel.mean((0, 1, 2), keepdims=True)
            return jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

    x = jnp.ones((1, 6, 6, 3))
    dense = {"params": {"a": Standardised().init(jax.random.key(0), x)["params"]}}
    kernels, _ = find_kernels(
        lambda v, x: Standardised().apply({"params": v["params"]["a"]}, x), dense, x
    )
    assert kernels["a"].fixed_because == "its kernel is computed from its variable"
    with pytest.raises(ValueError, match="computed from its variable; leave it out"):
        factorization(kernels, {"a": Factor("spatial", 1)})


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"nowhere": Factor("spatial", 1)}, "names 'nowhere'"),
        ({"grouped": Factor("weight", 1)}, "it has 4 groups"),
        ({"head": Factor("spatial", 1)}, "no spatial extent"),
        ({"stem": Factor("spatial", 0)}, r"must lie in 1..9"),
        ({"stem": Factor("spatial", 10)}, r"must lie in 1..9"),
        ({"stem": Factor("tucker", 1)}, r"`method` \(='tucker'\)"),
    ],
)
def test_refuses_bad_plans(network, plan, message):
    model, dense, x = network
    kernels, _ = find_kernels(model.apply, dense, x)
    with pytest.raises(ValueError, match=message):
        factorization(kernels, plan)
