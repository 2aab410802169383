"""Gradients: float64 against differences, and the straight-through path against its formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from skipconv_jax.ops import (
    ClosedLoop,
    Conv,
    GumbelGate,
    InputNormGate,
    Previous,
    init_state,
    skip_conv,
)
from tests.ops.cases import BY_NAME, named


@pytest.mark.parametrize("implementation", ["dense", "blocks"])
@pytest.mark.parametrize("policy", [Previous(), ClosedLoop()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("case", named("stride-two-torch"), ids=lambda c: c.name)
def test_float64_gradients_of_a_clip_equal_differences(case, policy, implementation):
    with jax.enable_x64(True):
        params, clip = case.params(dtype=np.float64), case.frames(3, streams=1, dtype=np.float64)
        gate = InputNormGate(0.3, block=2)
        kw = {"gate": gate, "policy": policy, **case.geometry}

        def loss(params, clip):
            state, total = init_state(params, clip[0], **kw), 0.0
            for x in clip:
                z, state = skip_conv(params, state, x, implementation=implementation, **kw)
                total = total + jnp.sin(z).sum()
            return total

        # Masks are constant around these values: no score lies near the threshold.
        check_grads(jax.jit(loss), (params, clip), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_forward_mode_of_the_reference_equals_reverse_mode():
    case = BY_NAME["plain"]
    params, clip = case.params(), case.frames(2)
    gate = InputNormGate(0.1, block=4)
    state = init_state(params, clip[0], gate=gate)
    _, state = skip_conv(params, state, clip[0], gate=gate)

    def loss(kernel):
        new = params | {"kernel": kernel}
        z, _ = skip_conv(new, state, clip[1], gate=gate, implementation="dense")
        return (z**2).sum()

    direction = jnp.cos(jnp.arange(params["kernel"].size, dtype=jnp.float32))
    direction = direction.reshape(params["kernel"].shape)
    _, forward = jax.jit(lambda k: jax.jvp(loss, (k,), (direction,)))(params["kernel"])
    reverse = (jax.jit(jax.grad(loss))(params["kernel"]) * direction).sum()
    np.testing.assert_allclose(forward, reverse, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["dense", "blocks"])
@pytest.mark.parametrize("recompute", [False, True])
def test_straight_through_gradient_is_its_analytic_form(implementation, recompute):
    """dL/dlogit of a block = sum over it of dL/dz (w * r) (or z - z_old), times s(1 - s) / tau."""
    case = BY_NAME["plain"]
    b, policy = case.block, ClosedLoop() if recompute else Previous()
    with jax.enable_x64(True):
        params = case.params(dtype=np.float64)
        clip = case.frames(2, dtype=np.float64)
        conv = Conv.make(clip[0].shape, params["kernel"].shape)
        gate, rng = GumbelGate(block=b, temperature=0.5), jax.random.key(5)
        kw = {"gate": gate, "policy": policy, "rng": rng, "implementation": implementation}

        @jax.jit
        def step(bias, state, x):
            gate_params = {
                "kernel": jnp.zeros((3, 3, case.ci, 1), jnp.float64),
                "bias": bias,
            }
            return skip_conv(params | {"gate": gate_params}, state, x, **kw)

        bias = jnp.full((1,), 0.3, jnp.float64)
        state = init_state(params, clip[0], gate=gate, policy=policy)
        z0, state = step(bias, state, clip[0])
        cotangent = jnp.sin(jnp.arange(z0.size, dtype=jnp.float64)).reshape(z0.shape)
        loss = jax.jit(lambda v, state: (step(v, state, clip[1])[0] * cotangent).sum())
        actual = jax.grad(loss)(bias, state)

        noise = jax.random.logistic(rng, state.fired.shape, jnp.float64)
        soft = jax.nn.sigmoid((0.3 + noise) / 0.5)
        operand = clip[1] if recompute else clip[1] - clip[0]
        update = conv(operand, params["kernel"])
        if recompute:
            update = update + params["bias"].reshape(1, 1, 1, -1) - z0
        per_position = (cotangent * update).sum(axis=-1)
        total = 0.0
        soft, per_position = np.asarray(soft), np.asarray(per_position)
        for stream, i, j in np.ndindex(state.fired.shape):
            inside = per_position[stream, i * b : (i + 1) * b, j * b : (j + 1) * b].sum()
            s = soft[stream, i, j]
            total += float(inside * s * (1 - s) / 0.5)
        np.testing.assert_allclose(float(actual[0]), total, rtol=1e-9)


def test_masks_have_gradients_only_in_training():
    case = BY_NAME["plain"]
    clip = case.frames(2)
    gate = GumbelGate(block=4, bias_init=0.0)
    conv = Conv.make(clip[0].shape, (3, 3, case.ci, case.co))
    gate_params = gate.init(jax.random.key(0), conv)
    params = case.params()
    state = init_state(params, clip[0], gate=gate)
    _, state = skip_conv(params | {"gate": gate_params}, state, clip[0], gate=gate)

    def share(gate_params, rng):
        given = params | {"gate": gate_params}
        return skip_conv(given, state, clip[1], gate=gate, rng=rng)[1].fired.mean()

    training = jax.jit(jax.grad(share))(gate_params, jax.random.key(1))
    serving = jax.jit(jax.grad(functools.partial(share, rng=None)))(gate_params)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(training))
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(serving))
    # A reference frame computes everything whatever the gate says: nothing to learn there.
    fresh = jax.grad(
        lambda g: skip_conv(
            params | {"gate": g}, state.reset(), clip[1], gate=gate, rng=jax.random.key(1)
        )[1].fired.mean()
    )(gate_params)
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(fresh))
