"""NaN and infinity: shown where the dense network shows them, and at the same cost everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import native, skip
from skipconv_jax.ops import Accumulate, ClosedLoop, GumbelGate, InputNormGate, Previous
from skipconv_jax.plans import compile_plan

pytestmark = pytest.mark.skipif(not native.available(), reason="the native engine is not built")

_BAD = (np.nan, np.inf, -np.inf)


def _conv(x, kernel, stride=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _network(variables, x):
    """A strided convolution, a residual block, and a head that sees no frame directly.

    No pool: XLA's `reduce_window` on CPUs loses the NaN of a maximum in it or fused into it.
    """
    h = jax.nn.relu(_conv(x, variables["a"], 2))
    h = jax.nn.relu6(_conv(h, variables["b"]) + h)
    return _conv(h, variables["c"])


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 4, 8), "b": (3, 3, 8, 8), "c": (1, 1, 8, 3)}
    return {n: jnp.asarray(0.2 * rng.normal(size=s), jnp.float32) for n, s in shapes.items()}


def _clip(bad):
    """Good, a bad pixel, the same twice more, good again."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 24, 20, 4)).astype(np.float32)
    broken = x.copy()
    broken[1, 5, 7, 2] = bad
    return [x, broken, broken, broken, x]


@pytest.mark.parametrize("bad", _BAD)
@pytest.mark.parametrize(
    ("policy", "gate"),
    [
        (Previous(), InputNormGate(0.05, block=4)),
        (ClosedLoop(), InputNormGate(0.05, block=4)),
        (Accumulate(), InputNormGate(0.05, block=4)),
        (ClosedLoop(), GumbelGate(block=4, bias_init=-1.0, sees="magnitude")),
    ],
)
def test_broken_frames_cost_and_show_the_same_as_net_apply(variables, policy, gate, bad):
    net = skip(_network, gate=gate, policy=policy)
    frames = _clip(bad)
    params, state = net.init(variables, frames[0], key=jax.random.key(0))
    plan = compile_plan(net, params, frames[0])
    step, made = jax.jit(net.apply), plan.init_state()
    counts = []
    for t, frame in enumerate(frames):
        want, state = step(params, state, frame)
        got, made, masks = plan.step(made, frame)
        fired = plan.fired(masks)
        for name in fired:
            np.testing.assert_array_equal(fired[name], state[name].fired, err_msg=f"{name} {t}")
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=str(t))
        np.testing.assert_allclose(got, want, atol=1e-4)
        counts.append(sum(float(jnp.sum(m)) for m in fired.values()))
    # The repeated broken frame goes on firing, no more than around the broken pixel.
    assert 0 < counts[2] == counts[3] < 0.2 * counts[0]


@pytest.mark.parametrize("kind", ["max", "mean", "mean_valid", "sum"])
@pytest.mark.parametrize("bad", _BAD)
def test_pools_show_what_they_see(kind, bad):
    builder = native.ProgramBuilder()
    pads = ((1, 1), (1, 1))
    builder.output(builder.pool(builder.input(6, 6, 16), kind, (3, 3), (1, 1), pads))
    program = builder.finish()
    frame = np.random.default_rng(0).normal(size=(1, 6, 6, 16)).astype(np.float32)
    frame[0, 2, 3, 5] = bad
    (y,), _, _ = program.apply(program.constants, program.init_state(1), frame)
    seen = np.zeros((1, 6, 6, 16), bool)
    seen[0, 1:4, 2:5, 5] = True
    if kind == "max" and bad == -np.inf:
        assert np.isfinite(y).all()
    else:
        np.testing.assert_array_equal(~np.isfinite(y), seen)
        assert (np.isnan(y) == seen if np.isnan(bad) else y[seen] == bad).all()


def _act_cases():
    nn = jax.nn
    A = native.Activation
    return {
        "none": (A(), lambda x: x),
        "relu": (A("relu"), nn.relu),
        "relu6": (A("relu6"), nn.relu6),
        "clip": (A("clip", (0.25, 4.0)), lambda x: jnp.clip(x, 0.25, 4.0)),
        "swish": (A("swish"), nn.swish),
        "sigmoid": (A("sigmoid"), nn.sigmoid),
        "tanh": (A("tanh"), jnp.tanh),
        "hard_swish": (A("hard_swish"), nn.hard_swish),
        "hard_sigmoid": (A("hard_sigmoid", (0.2, 0.5)), lambda x: jnp.clip(0.2 * x + 0.5, 0, 1)),
        "leaky_relu": (A("leaky_relu", (0.1,)), lambda x: nn.leaky_relu(x, 0.1)),
        "prelu": (
            A("prelu", slope=(0.1, 0.5, -0.3)),
            lambda x: jnp.where(x >= 0, x, jnp.array([[[[0.1, 0.5, -0.3]]]]) * x),
        ),
        "elu": (A("elu", (0.7,)), lambda x: nn.elu(x, 0.7)),
        "gelu": (A("gelu"), lambda x: nn.gelu(x, approximate=False)),
        "gelu_tanh": (A("gelu_tanh"), nn.gelu),
        "mish": (A("mish"), nn.mish),
        "softplus": (A("softplus"), nn.softplus),
        "erf": (A("erf"), jax.scipy.special.erf),
        "exp": (A("exp"), jnp.exp),
        "log": (A("log"), jnp.log),
        "abs": (A("abs"), jnp.abs),
        "sqrt": (A("sqrt"), jnp.sqrt),
        "rsqrt": (A("rsqrt"), jax.lax.rsqrt),
        "square": (A("square"), jnp.square),
    }


@pytest.fixture(scope="module")
def values():
    """Every size of number in three channels, and what is none."""
    some = np.concatenate(
        [np.linspace(-12, 12, 401), np.logspace(-30, 4, 60), -np.logspace(-30, 4, 60)]
    )
    some = np.concatenate([some, [0.0, -0.0, np.nan, np.inf, -np.inf, 88.5, -88.5, 100.0]])
    return np.resize(some.astype(np.float32), (1, 24, 24, 3))


@pytest.mark.parametrize("name", list(_act_cases()))
def test_activations_alone_and_behind_a_convolution(name, values):
    act, function = _act_cases()[name]
    builder = native.ProgramBuilder()
    x = builder.input(24, 24, 3)
    builder.output(builder.affine(x, act=act))
    spec = native.ConvSpec(np.eye(3, dtype=np.float32)[None, None], name="c", act=act)
    builder.output(builder.conv(x, spec))
    program = builder.finish()
    outputs, _, _ = program.apply(program.constants, program.init_state(1), values)
    with jax.default_matmul_precision("highest"):
        want = np.asarray(jax.jit(function)(values))
    alone, behind = (np.asarray(y) for y in outputs)
    np.testing.assert_allclose(alone, want, rtol=1e-5, atol=2e-6)
    # What is exactly 0 of an infinite argument makes NaN of an infinite factor, and must be.
    np.testing.assert_array_equal((alone == 0)[np.isinf(values)], (want == 0)[np.isinf(values)])
    # A convolution mixes channels: a position with a broken one is broken in all. And 0 + -0 is 0.
    whole = (np.isfinite(values) & ((values != 0) | ~np.signbit(values))).all(-1)
    np.testing.assert_allclose(behind[whole], want[whole], rtol=1e-5, atol=2e-6)
    assert set(_act_cases()) == set(native.schema.names("Act"))
