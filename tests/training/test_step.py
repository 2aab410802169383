"""The dense and the gated step, and what happens when something is not finite."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import macs
from skipconv_jax.training.optimizer import optimizer
from skipconv_jax.training.step import create_state, culprits, dense_loss, make_step
from skipconv_jax.warp import Translation, equivariance_loss
from tests.training import toy


def _train(loss_fn, variables, gates, steps, **changes):
    opt = optimizer(toy.recipe(**changes), steps)
    state, step, batches = (
        create_state(variables, gates, opt),
        make_step(loss_fn, opt),
        toy.Batches(),
    )
    history = []
    for _ in range(steps):
        state, figures = step(state, next(batches), jax.random.key(0))
        history.append(jax.device_get(figures))
    return state, history


def test_dense_training_learns_and_updates_statistics():
    _, variables, _ = toy.gated()
    before = jax.tree.map(np.asarray, variables["batch_stats"])
    state, history = _train(dense_loss(toy.forward, toy.Task()), variables, {}, 60)
    assert history[-1].loss < 0.3 * history[0].loss
    assert int(state.step) == 60
    assert bool(state.healthy)
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, before, state.stats["batch_stats"])
    assert all(jax.tree.leaves(changed))


class _Strided(nn.Module):
    """A layer of stride 2, which shifts by one pixel tell from its input."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=2, use_bias=False, name="down")(x)
        return jnp.repeat(jnp.repeat(nn.Conv(1, (3, 3), name="head")(x), 2, 1), 2, 2)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_equivariance_is_a_term_of_the_dense_loss(weight):
    """Section 3.3: with a weight it is reported and falls below what it is without."""
    model = _Strided()
    variables = model.init(jax.random.key(0), toy.frame())

    def forward(variables, frames):
        return model.apply(variables, frames), {}

    plain = dense_loss(forward, toy.Task())
    loss = dense_loss(forward, toy.Task(), equivariance=weight, farthest=3)
    state, history = _train(loss, variables, {}, 40, schedule="constant")
    assert set(history[0].terms) == ({"error", "equivariance"} if weight else {"error"})
    untouched, _ = _train(plain, variables, {}, 40, schedule="constant")
    errors = []
    for trained in (state, untouched):
        x, motion = toy.Batches().__next__()["frames"][:, 0], Translation(jnp.ones((4, 2)))
        errors.append(float(equivariance_loss(forward, trained.variables, x, motion)[0]))
    assert errors[0] < 0.9 * errors[1] if weight else errors[0] == errors[1]


def test_equivariance_settings_are_checked():
    for settings in ({"equivariance": -1.0}, {"equivariance": 1.0, "farthest": 0.5}):
        with pytest.raises(ValueError, match="at least"):
            dense_loss(toy.forward, toy.Task(), **settings)


def test_create_state_survives_donation():
    loss, variables, gates = toy.gated()
    _train(loss, variables, gates, 2)
    assert np.isfinite(jax.tree.leaves(variables)[0]).all(), "the caller's variables were donated"


def test_gated_training_lowers_the_cost_more_for_a_larger_beta():
    shares = []
    for beta in (0.0, 3.0):
        loss, variables, gates = toy.gated(beta)
        _, history = _train(loss, variables, gates, 40, gate_lr_scale=30.0, schedule="constant")
        shares.append(float(history[-1].extra["macs_share"]))
        assert history[-1].terms["gate"] == pytest.approx(beta * shares[-1], rel=1e-5)
    assert shares[1] < 0.7 * shares[0]


def test_gated_loss_is_the_mean_over_frames_plus_beta_times_eq_9():
    beta = 0.3
    loss_fn, variables, gates = toy.gated(beta)
    batch, rng = next(toy.Batches()), jax.random.key(5)
    params, stats = variables["params"], {"batch_stats": variables["batch_stats"]}
    loss, (figures, _) = loss_fn({"model": params, "gates": gates}, stats, batch, rng)

    net, task = toy.gated_net(), toy.Task()
    x = jnp.asarray(batch["frames"])
    table = net.table(variables, x[:, 0])
    _, state = net.init(variables, x[:, 0], key=rng)
    errors, costs = [], []
    for t, key in enumerate(jax.random.split(rng, toy.LENGTH)):
        weights = {"model": {"params": params, **stats}, "gates": gates}
        (outputs, stats), state = net.apply(weights, state, x[:, t], rng=key)
        errors.append(task.losses(outputs, {"map": batch["map"][:, t]})["error"])
        costs.append(macs.gate_loss(table, state))
    expected = np.mean(errors) + beta * np.mean(costs[1:])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(figures.extra["macs_share"], np.mean(costs[1:]), rtol=1e-5)
    assert costs[0] == 1, "the reference frame computes everything"


def test_gated_clips_must_have_a_frame_after_the_reference():
    loss_fn, variables, gates = toy.gated()
    weights, stats = {"model": variables["params"], "gates": gates}, {}
    batch = {name: array[:, :1] for name, array in next(toy.Batches()).items()}
    with pytest.raises(ValueError, match=r"`batch` \(clips of 1 frame\).*`clip_length`"):
        loss_fn(weights, stats, batch, jax.random.key(0))


def test_remat_changes_memory_and_no_value():
    batch, rng = next(toy.Batches()), jax.random.key(5)
    grads = []
    for remat in (False, True):
        loss_fn, variables, gates = toy.gated(remat=remat)
        stats = {"batch_stats": variables["batch_stats"]}
        weights = {"model": variables["params"], "gates": gates}
        grads.append(jax.grad(loss_fn, has_aux=True)(weights, stats, batch, rng)[0])
    chex.assert_trees_all_close(*grads, rtol=1e-4, atol=1e-6)


def test_gate_gradients_reach_every_gate():
    loss_fn, variables, gates = toy.gated()
    weights = {"model": variables["params"], "gates": gates}
    stats = {"batch_stats": variables["batch_stats"]}
    grads, _ = jax.grad(loss_fn, has_aux=True)(
        weights, stats, next(toy.Batches()), jax.random.key(0)
    )
    for name, gate in grads["gates"].items():
        for leaf in jax.tree.leaves(gate):
            assert np.abs(leaf).max() > 0, name


def test_a_step_that_is_not_finite_changes_nothing_and_names_the_culprit():
    loss_fn, variables, gates = toy.gated()
    opt = optimizer(toy.recipe(), 10)
    state, step = create_state(variables, gates, opt), make_step(loss_fn, opt)
    state, _ = step(state, next(toy.Batches()), jax.random.key(0))
    kept = jax.tree.map(np.asarray, state)
    poisoned = next(toy.Batches(poison=0))
    state, _ = step(state, poisoned, jax.random.key(0))
    assert not bool(state.healthy)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, state)[:4], kept[:4])
    # Latched: a good batch afterwards changes nothing either.
    state, _ = step(state, next(toy.Batches()), jax.random.key(0))
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, state)[:4], kept[:4])
    found = culprits(loss_fn, state, poisoned, jax.random.key(0))
    assert found[0] == "input frames"
    assert "loss term error" in found


def test_culprits_name_a_weight():
    loss_fn, variables, gates = toy.gated()
    opt = optimizer(toy.recipe(), 10)
    state = create_state(variables, gates, opt)
    state.weights["model"]["second"]["kernel"] = jnp.full((3, 3, 6, 1), jnp.inf)
    found = culprits(loss_fn, state, next(toy.Batches()), jax.random.key(0))
    assert found[0] == "weight model/second/kernel"
