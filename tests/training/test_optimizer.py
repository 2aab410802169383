"""Schedules and the gates' own learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.training.optimizer import optimizer, schedule
from tests.training import toy


def test_steps_divide_by_ten_at_the_papers_epochs():
    rate = schedule(toy.recipe(lr=1e-3, schedule="steps", milestones=(0.4, 0.8), warmup=0), 100)
    np.testing.assert_allclose(
        [rate(s) for s in (0, 39, 41, 79, 81)], [1e-3, 1e-3, 1e-4, 1e-4, 1e-5], rtol=1e-5
    )


def test_warmup_rises_and_cosine_falls_to_zero():
    rate = schedule(toy.recipe(lr=1.0, schedule="cosine", warmup=10), 110)
    assert rate(0) == 0
    assert rate(10) == pytest.approx(1)
    assert rate(60) == pytest.approx(0.5)
    assert rate(110) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("changes", [{"schedule": "linear"}, {"warmup": 100}, {"warmup": -1}])
def test_bad_recipes_are_refused(changes):
    with pytest.raises(ValueError, match="must be"):
        schedule(toy.recipe(**changes), 100)


def test_gates_learn_at_their_own_rate():
    opt = optimizer(toy.recipe(schedule="constant", warmup=0, lr=1e-2, gate_lr_scale=10.0), 10)
    weights = {"model": {"k": jnp.zeros(3)}, "gates": {"g": jnp.zeros(3)}}
    grads = jax.tree.map(jnp.ones_like, weights)
    updates, _ = opt.update(grads, opt.init(weights), weights)
    np.testing.assert_allclose(updates["model"]["k"], -1e-2, rtol=1e-4)
    np.testing.assert_allclose(updates["gates"]["g"], -1e-1, rtol=1e-4)


def test_sgd_decays_kernels_alone_before_its_momentum():
    recipe = toy.recipe(
        optimizer="sgd", momentum=0.5, weight_decay=0.1, schedule="constant", lr=1.0
    )
    made = optimizer(recipe, 10)
    one = jnp.ones(2)
    weights = {"model": {"kernel": one, "bias": one}, "gates": {"kernel": one}}
    state = made.init(weights)
    zero = jax.tree.map(jnp.zeros_like, weights)
    first, state = made.update(zero, state, weights)
    second, _ = made.update(zero, state, weights)
    assert first["model"]["kernel"].tolist() == pytest.approx([-0.1] * 2)
    # The momentum holds the decay of the step before.
    assert second["model"]["kernel"].tolist() == pytest.approx([-0.15] * 2)
    assert not first["model"]["bias"].any()
    assert not first["gates"]["kernel"].any()
    with pytest.raises(ValueError, match="must be 'adam' or 'sgd'"):
        optimizer(toy.recipe(optimizer="lion"), 10)
