"""Plans in XLA: the folded network gives what `net.apply` gives, values and masks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import Rule, skip
from skipconv_jax.models.initialize import init_variables
from skipconv_jax.ops import (
    Accumulate,
    ClosedLoop,
    ConvNormGate,
    InputNormGate,
    Keyframe,
    OutputNormGate,
    Previous,
    init_state,
    skip_conv,
)
from skipconv_jax.ops.masked_conv.epilogue import Epilogue
from skipconv_jax.plans import compile_plan
from skipconv_jax.plans.folded import FoldedPlan, fold_plan
from skipconv_jax.plans.plain import PlainPlan


class Net(nn.Module):
    """Batch norm, three activations, a residual, a pool and a dense head."""

    @nn.compact
    def __call__(self, x):
        """`(B, 16, 16, 3)` to `(B, 4)`."""
        norm = lambda x: nn.BatchNorm(use_running_average=True)(x)  # noqa: E731
        x = nn.relu(norm(nn.Conv(8, (3, 3), use_bias=False, name="stem")(x)))
        y = nn.swish(norm(nn.Conv(8, (3, 3), strides=2, name="down")(x)))
        z = norm(nn.Conv(8, (1, 1), use_bias=False, name="last")(y))
        y = nn.relu(y + z)
        y = jnp.tanh(nn.Conv(8, (3, 3), name="tanh")(y))
        return nn.Dense(4)(y.mean(axis=(1, 2)))


@pytest.fixture(scope="module")
def clip():
    """Four frames of two streams; a part changes."""
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.normal(size=(1, 2, 16, 16, 3)), 4, axis=0)
    frames[1:, :, 4:10, 4:10] += rng.normal(size=(3, 2, 6, 6, 3))
    frames += 0.02 * rng.normal(size=frames.shape)
    return jnp.asarray(frames, jnp.float32)


def _made(clip, zero=False):
    model = Net()
    variables = init_variables(model, jax.random.key(0), clip[0])
    keys = iter(jax.random.split(jax.random.key(1), 99))
    spread = lambda a: a + 0.3 * jax.random.uniform(next(keys), a.shape)  # noqa: E731
    variables = {
        "params": jax.tree.map(spread, variables["params"]),
        "batch_stats": jax.tree.map(spread, variables["batch_stats"]),
    }
    if zero:
        norm = variables["params"]["BatchNorm_0"]
        norm["scale"] = norm["scale"].at[2].set(0.0)
    return model, variables


@pytest.mark.parametrize("gate", [InputNormGate(0.05, block=4), OutputNormGate(0.01, block=4)])
@pytest.mark.parametrize("policy", [Previous(), ClosedLoop(), Accumulate(), Keyframe()])
def test_equals_net_apply(clip, policy, gate):
    model, variables = _made(clip, zero=isinstance(gate, InputNormGate))
    net = skip(model.apply, [("last", Rule(gate, policy, "dense"))], gate=gate, policy=policy)
    params, state = net.init(variables, clip[0])
    plan = fold_plan(net, params, clip[0])
    assert isinstance(plan, FoldedPlan)
    ours, step, fired = plan.init_state(), jax.jit(net.apply), []
    for t, x in enumerate(clip):
        flags = jnp.array([t == 2, False])
        want, state = step(params, net.reset(state, flags), x)
        got, ours, masks = plan.step(plan.reset(ours, flags), x)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        assert set(masks) == set(state)
        for name, mask in plan.fired(masks).items():
            np.testing.assert_array_equal(mask, state[name].fired)
        fired.append(float(state["stem"].fired[1].mean()))
    assert 0 < fired[1] < 1
    assert plan.state_bytes() == sum(a.nbytes for a in jax.tree.leaves(state)) // 2
    fused = 0 if isinstance(policy, Previous) else 2
    assert plan.report().startswith(f"{fused} of 4 Skip-Convolutions take")


def test_no_pass_over_the_map_is_left(clip):
    """A convolution, batch norm and activation are one branch: nothing follows the kernel."""
    model, variables = _made(clip)
    net = skip(model.apply, gate=InputNormGate(0.05, block=4), policy=ClosedLoop())
    params, _ = net.init(variables, clip[0])
    plan = fold_plan(net, params, clip[0])

    def passes(apply, *args):
        """Additions and maxima over whole maps of the stem's output, outside of loops."""
        eqns = jax.make_jaxpr(apply)(*args).eqns
        names = [e.primitive.name for e in eqns if e.outvars[0].aval.shape == (2, 16, 16, 8)]
        return names.count("add") + names.count("max") + names.count("mul")

    assert passes(plan.apply, plan.init_state(), clip[0], plan.constants) == 0
    assert passes(net.apply, params, net.init(variables, clip[0])[1], clip[0]) >= 2


def test_thresholds_change_without_compiling(clip):
    model, variables = _made(clip)
    net = skip(model.apply, gate=InputNormGate(0.0, block=4), policy=Accumulate())
    params, _ = net.init(variables, clip[0])
    plan = fold_plan(net, params, clip[0])
    step = jax.jit(plan.apply)
    gates = {name: {"threshold": jnp.float32(9.0)} for name in params["gates"]}
    for constants, fired in ((plan.constants, 1.0), (plan.with_gates(gates), 0.0)):
        state = plan.init_state()
        for x in clip[:2]:
            _, state, masks = step(state, x, constants)
        assert float(masks["stem"].mean()) == fired
    assert step._cache_size() == 1


def test_what_is_not_folded_runs_as_it_is(clip):
    """bfloat16 convolutions, and gates that look at a kernel which folding has lost."""
    half = nn.Conv(4, (3, 3), dtype=jnp.bfloat16)
    narrow_variables = half.init(jax.random.key(0), clip[0])
    narrow = skip(half.apply, gate=InputNormGate(0.05, block=4))
    model, zero = _made(clip, zero=True)
    exact = skip(model.apply, gate=ConvNormGate(0.05, block=4))
    cases = ((narrow, narrow_variables, "float32"), (exact, zero, "by 0"))
    for net, variables, why in cases:
        params, state = net.init(variables, clip[0])
        plan = fold_plan(net, params, clip[0])
        assert type(plan) is PlainPlan
        assert why in plan.report()
        want, _ = jax.jit(net.apply)(params, state, clip[0])
        got, _, _ = plan.step(plan.init_state(), clip[0])
        np.testing.assert_array_equal(got, want)


def test_accelerators_get_a_folded_plan(clip, monkeypatch):
    """The native engine is a CPU's: elsewhere its custom call would have nobody to run it."""
    model, variables = _made(clip)
    net = skip(model.apply, gate=InputNormGate(0.05, block=4), policy=ClosedLoop())
    params, _ = net.init(variables, clip[0])
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert isinstance(compile_plan(net, params, clip[0]), FoldedPlan)


def test_epilogues_that_cannot_be_kept_are_refused():
    params, x = {"kernel": jnp.ones((3, 3, 1, 2))}, jnp.ones((1, 8, 8, 1))
    one = jnp.ones(2)
    for policy, epilogue, match in (
        (Previous(), Epilogue(one, one), "adds to its output"),
        (ClosedLoop(), Epilogue(one, one, jnp.ones((1, 8, 8, 2))), "missed where no block fires"),
    ):
        state = init_state(params, x, policy=policy)
        with pytest.raises(ValueError, match=match):
            skip_conv(params, state, x, policy=policy, epilogue=epilogue)
