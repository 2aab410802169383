"""L0: gate distribution, which channels may go, pruned equals gated, batch norm estimated anew."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skipconv_jax import skip
from skipconv_jax.compress import (
    expected_share,
    find_groups,
    find_kernels,
    gated,
    init_gates,
    l0_loss,
    mean_gates,
    prune,
    reestimate,
)
from skipconv_jax.compress.l0 import BETA, GAMMA, ZETA, kept, probability_open, sample
from skipconv_jax.models import hrnet_small, init_variables
from skipconv_jax.ops import AlwaysGate
from skipconv_jax.training.step import create_state, make_step


@pytest.mark.parametrize("log_a", [-2.0, 0.0, 1.5])
def test_gates_are_hard_concrete(log_a):
    n = 200_000
    z = np.asarray(sample({"a": jnp.full((n,), log_a)}, jax.random.key(0))["a"])
    assert z.min() >= 0
    assert z.max() <= 1
    # P(z > v) from the inverse of the stretched sigmoid, at both ends and in the middle.
    for v in (0.0, 0.3, 1 - 1e-6):
        s = (v - GAMMA) / (ZETA - GAMMA)
        above = 1 / (1 + np.exp(BETA * np.log(s / (1 - s)) - log_a))
        assert (z > v).mean() == pytest.approx(above, abs=4 / np.sqrt(n))
    opened = float(probability_open(jnp.float32(log_a)))
    assert (z > 0).mean() == pytest.approx(opened, abs=4 / np.sqrt(n))


def test_gates_of_inference():
    z = mean_gates({"a": jnp.array([-10.0, 0.0, 10.0])})["a"]
    np.testing.assert_allclose(z, [0.0, 0.5, 1.0], atol=1e-6)


def test_groups_hold_what_only_convolutions_read(network):
    model, dense, x = network
    (group,) = find_groups(model.apply, dense, x)
    # The stem and the outer one meet in the sum, the grouped one groups, the head leaves.
    assert group.name == "inner"
    assert group.channels == 12
    assert group.source == ("params", "inner", "kernel")
    assert group.readers == (("params", "outer", "kernel"),)
    assert sorted(group.vectors) == [
        ("batch_stats", "inner_bn", "mean"),
        ("batch_stats", "inner_bn", "var"),
        ("params", "inner", "bias"),
        ("params", "inner_bn", "bias"),
        ("params", "inner_bn", "scale"),
    ]


class Doubtful(nn.Module):
    """Channels that must stay: concatenated, mixed, of a shared or a transposed kernel, summed."""

    @nn.compact
    def __call__(self, x):
        def conv(name):
            return nn.Conv(4, (3, 3), name=name)

        a, b = conv("a")(x), conv("b")(x)
        y = conv("c")(jnp.concatenate([a, b], axis=-1))
        y = conv("d")(nn.softmax(y, axis=-1))
        shared = conv("e")
        y = shared(shared(y))
        y = conv("f")(nn.GroupNorm(2)(y))
        y = nn.ConvTranspose(4, (2, 2), (2, 2), name="g")(y)
        y = nn.max_pool(conv("h")(y), (2, 2), (2, 2))
        return conv("left")(y) + conv("right")(nn.swish(y))


def test_nothing_is_pruned_on_a_guess():
    x = jnp.ones((1, 8, 8, 4))
    dense = jax.eval_shape(Doubtful().init, jax.random.key(0), x)
    # `h` is read by two convolutions, once through a pooling and an activation.
    groups = find_groups(Doubtful().apply, dense, x)
    assert [g.name for g in groups] == ["h"]
    assert sorted(r[1] for r in groups[0].readers) == ["left", "right"]


def test_penalty_counts_open_inputs_times_open_outputs(network):
    model, dense, x = network
    kernels, total = find_kernels(model.apply, dense, x)
    groups = find_groups(model.apply, dense, x)
    log_a = {"inner": jnp.linspace(-3.0, 3.0, 12)}
    share = float(probability_open(log_a["inner"]).mean())
    both = kernels["inner"].macs + kernels["outer"].macs
    expected = 1 - (1 - share) * both / total
    cost = lambda a: expected_share(a, groups, kernels, total)  # noqa: E731
    assert float(cost(log_a)) == pytest.approx(expected, rel=1e-5)
    assert float(cost({"inner": jnp.full((12,), 50.0)})) == pytest.approx(1, abs=1e-6)
    assert float(jax.grad(cost)(log_a)["inner"].min()) > 0


@pytest.fixture(scope="module")
def small():
    """A small HRNet with trained-looking gates."""
    model = hrnet_small(width=4, joints=3)
    x = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    dense = init_variables(model, jax.random.key(0), x)
    groups = find_groups(model.apply, dense, x)
    rng = np.random.default_rng(0)
    log_a = {g.name: jnp.asarray(rng.normal(0, 3, g.channels), jnp.float32) for g in groups}
    # One group is closed altogether.
    name = groups[4].name
    return model, x, dense, groups, log_a | {name: jnp.full((groups[4].channels,), -9.0)}


def test_pruned_network_computes_what_the_gated_one_does(small):
    model, x, dense, groups, log_a = small
    assert len(groups) == 23
    cut, variables = prune(groups, log_a, dense)
    run = cut.wrap(model.apply)
    with_gates = jax.jit(model.apply)(gated(dense, groups, mean_gates(log_a)), x)
    y = jax.jit(run)(variables, x)
    np.testing.assert_allclose(y, with_gates, rtol=1e-4, atol=1e-6)
    # Smaller in truth: fewer parameters, fewer multiply-accumulates, and it still skips.
    assert sum(v.size for v in jax.tree.leaves(variables)) < 0.9 * sum(
        v.size for v in jax.tree.leaves(dense)
    )
    table, whole = skip(run).table(variables, x), skip(model.apply).table(dense, x)
    assert table.macs < 0.9 * whole.macs
    widths = {g.name: len(at) for g, at in cut.entries}
    assert widths[groups[4].name] == 1
    for row in table.rows:
        assert row.out_shape[-1] == widths.get(row.name, row.out_shape[-1])


def test_pruned_network_skips(network):
    model, dense, x = network
    groups = find_groups(model.apply, dense, x)
    cut, variables = prune(groups, {"inner": jnp.linspace(-6.0, 6.0, 12)}, dense)
    run = cut.wrap(model.apply)
    net = skip(run, gate=AlwaysGate(block=4))
    params, state = net.init(variables, x)
    y, _ = jax.jit(net.apply)(params, state, x)
    np.testing.assert_allclose(y, run(variables, x), rtol=1e-4, atol=1e-5)


def test_kept_channels_are_those_with_open_gates():
    channels = kept({"a": jnp.array([-5.0, 1.0, -2.39, -2.41]), "b": jnp.array([-9.0, -8.0])})
    # sigmoid(log a) 1.2 - 0.1 > 0 from log a = -2.398.
    assert channels["a"].tolist() == [1, 2]
    assert channels["b"].tolist() == [1]


def test_reestimated_statistics_are_the_batch_s(network):
    model, dense, x = network

    def forward(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    variables = reestimate(forward, dense, x)
    assert variables["params"] is dense["params"]
    in_training, _ = jax.jit(forward)(dense, x)
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, x), in_training, rtol=1e-4, atol=1e-5
    )


def test_training_closes_gates_and_keeps_the_task(network):
    model, dense, _ = network
    kernels, total = find_kernels(model.apply, dense, jnp.zeros((1, 8, 8, 3)))
    groups = find_groups(model.apply, dense, jnp.zeros((1, 8, 8, 3)))

    class Task:
        def losses(self, outputs, targets):
            return {"error": ((outputs - targets["y"]) ** 2).mean()}

    def forward(variables, x):
        y, stats = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return y, dict(stats)

    loss = l0_loss(forward, Task(), groups, kernels, total, weight=1.0)
    optimizer = optax.adam(5e-2)
    step = make_step(loss, optimizer)
    state = create_state(dense, init_gates(groups), optimizer)
    batch = {"frames": jax.random.normal(jax.random.key(3), (2, 2, 8, 8, 3)),
             "y": jnp.zeros((2, 2, 4, 4, 5))}  # fmt: skip
    shares, errors = [], []
    for _ in range(60):
        # Optax's bias correction relies on a promotion that the tests forbid elsewhere.
        with jax.numpy_dtype_promotion("standard"):
            state, figures = step(state, batch, jax.random.key(4))
        shares.append(float(figures.extra["macs_share"]))
        errors.append(float(figures.terms["error"]))
    assert bool(state.healthy)
    assert shares[0] > 0.98
    assert shares[-1] < shares[0] - 0.2
    assert errors[-1] < 0.1 * errors[0]
