"""A skipped network in training and in service: states, streams, statistics, keys, gradients."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from skipconv_jax import macs, skip
from skipconv_jax.ops import AlwaysGate, ConvNormGate, GumbelGate, InputNormGate, OutputNormGate

CLIP = np.asarray(jax.random.normal(jax.random.key(0), (1, 2, 9, 8, 3))).repeat(6, axis=0)
CLIP[:, :, :4, :4] += np.random.default_rng(0).standard_normal((6, 2, 4, 4, 3))
CLIP = CLIP.astype(np.float32)


class Net(nn.Module):
    """Two convolutions with bias, batch norm and dropout between them."""

    remat: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        conv = nn.remat(nn.Conv) if self.remat else nn.Conv
        x = conv(4, (3, 3), strides=2, name="first", bias_init=nn.initializers.normal(1.0))(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        x = nn.Dropout(0.3, deterministic=not train)(nn.relu(x))
        return conv(3, (3, 3), name="second", bias_init=nn.initializers.normal(1.0))(x)


@pytest.fixture(scope="module")
def variables():
    return Net().init(jax.random.key(1), CLIP[0])


@pytest.fixture(scope="module")
def step():
    """The served network and its jitted step."""
    net = skip(Net().apply, gate=InputNormGate(0.15, block=2))
    return net, jax.jit(net.apply)


def run(step, params, state, clip, resets=()):
    """Outputs and masks of a clip, frame by frame, streams reset before the named frames."""
    net, apply = step
    outputs = []
    for t, x in enumerate(clip):
        if t in dict(resets):
            state = net.reset(state, jnp.asarray(dict(resets)[t]))
        y, state = apply(params, state, x)
        outputs.append((y, {name: layer.fired for name, layer in state.items()}))
    return outputs, state


@pytest.mark.parametrize(
    "gate",
    [
        InputNormGate(1e-2, block=2),
        OutputNormGate(1e-3, block=2),
        ConvNormGate(1e-2, block=2),
        GumbelGate(block=2),
        AlwaysGate(block=2),
    ],
    ids=lambda g: type(g).__name__,
)
def test_static_clip_is_constant_for_every_gate(variables, gate):
    net = skip(Net().apply, gate=gate)
    params, state = net.init(variables, CLIP[0], key=jax.random.key(0))
    _, outputs = jax.jit(lambda s: lax.scan(lambda s, _: net.apply(params, s, CLIP[0])[::-1], s,
                                            None, length=5))(state)  # fmt: skip
    np.testing.assert_array_equal(outputs, np.asarray(outputs[:1]).repeat(5, axis=0))
    chex.assert_trees_all_close(outputs[0], Net().apply(variables, CLIP[0]), atol=1e-5)


def test_streams_apart_and_resets(variables, step):
    params, state = step[0].init(variables, CLIP[0])
    resets = {2: [False, True], 4: [True, True]}
    together, _ = run(step, params, state, CLIP, resets.items())
    for b in range(2):
        params, state = step[0].init(variables, CLIP[0][:1])
        alone = {t: flags[b : b + 1] for t, flags in resets.items()}
        apart, _ = run(step, params, state, CLIP[:, b : b + 1], alone.items())
        for (y, fired), (y1, fired1) in zip(together, apart, strict=True):
            chex.assert_trees_all_close(y[b], y1[0], atol=1e-5)
            for name in fired:
                np.testing.assert_array_equal(fired[name][b], fired1[name][0])
    shares = [float(fired["first"].mean()) for _, fired in together]
    assert shares[0] == shares[4] == 1 > max(shares[1], shares[3], shares[5])
    chex.assert_trees_all_close(together[4][0], Net().apply(variables, CLIP[4]), atol=1e-5)


def test_vmap_over_streams_equals_a_batch(variables, step):
    net, _ = step
    params, state = net.init(variables, CLIP[0])
    _, one = net.init(variables, CLIP[0][:1])
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), one)
    apply = jax.jit(jax.vmap(net.apply, in_axes=(None, 0, 0)))
    for x in CLIP[:3]:
        y, state = step[1](params, state, x)
        z, many = apply(params, many, x[:, None])
        chex.assert_trees_all_close(z[:, 0], y, atol=1e-5)
    chex.assert_trees_all_equal(many["second"].fired[:, 0], state["second"].fired)


def test_donated_state_leaves_the_frames_alive(variables, step):
    net, _ = step
    apply = jax.jit(net.apply, donate_argnums=1)
    params, state = net.init(variables, CLIP[0])
    x = jnp.asarray(CLIP[0])
    first, state = apply(params, state, x)
    for _ in range(2):
        y, state = apply(params, state, x)
    np.testing.assert_array_equal(y, first)
    assert not x.is_deleted()


def test_states_and_parameters_of_other_networks_are_refused(variables, step):
    net, _ = step
    params, state = net.init(variables, CLIP[0])
    with pytest.raises(ValueError, match=r"`state` .*'third'"):
        net.apply(params, state | {"third": state["first"]}, CLIP[0])
    with pytest.raises(ValueError, match=r"`state` and .*'second'"):
        net.apply(params, {"first": state["first"]}, CLIP[0])
    for x in (CLIP[0][:1], CLIP[0][:, :7]):
        with pytest.raises(ValueError, match="`state`"):
            net.apply(params, state, x)
    with pytest.raises(ValueError, match=r"`state`"):
        skip(Net().apply, gate=InputNormGate(0.1, block=4)).apply(params, state, CLIP[0])
    gumbel = skip(Net().apply, gate=GumbelGate(block=2))
    with pytest.raises(ValueError, match=r"`params\['gate'\]`"):
        gumbel.apply(params, state, CLIP[0])
    with pytest.raises(ValueError, match=r"`key` \(=None\)"):
        gumbel.init(variables, CLIP[0])
    with pytest.raises(ValueError, match=r"`streams` \(shape \(1,\)"):
        net.reset(state, jnp.array([True]))


def train_fn(model, variables, x, key):
    """A Flax network in training mode: statistics out, dropout key in."""
    return model.apply(variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])


@pytest.mark.parametrize("remat", [False, True])
def test_batch_statistics_and_dropout_keys_pass_through(variables, remat):
    fn = functools.partial(train_fn, Net(remat))
    net = skip(fn, gate=InputNormGate(0.0, block=2))
    variables = Net(remat).init(jax.random.key(1), CLIP[0])
    params, state = net.init(variables, CLIP[0], jax.random.key(0))
    apply, dense = jax.jit(net.apply), jax.jit(fn)
    outputs = []
    for t, x in enumerate(CLIP[:3]):
        out, state = apply(params, state, x, jax.random.key(t))
        # Dropout zeroes what changed besides the frame, which the second layer's residual sees.
        chex.assert_trees_all_close(out, dense(variables, x, jax.random.key(t)), atol=2e-5)
        outputs.append(out[1]["batch_stats"]["norm"]["mean"])
    assert np.abs(outputs[0] - variables["batch_stats"]["norm"]["mean"]).max() > 1e-3


def test_training_step_through_a_clip(variables):
    """T frames through `scan`: remat changes no gradient, and gates and model both learn."""
    grads = {}
    for remat in (False, True):
        model = Net(remat)
        net = skip(model.apply, gate=GumbelGate(block=2, bias_init=0.0))
        params, state = net.init(variables, CLIP[0], key=jax.random.key(2))
        table = net.table(variables, CLIP[0])

        def loss(params, state, keys, net=net, table=table):
            def frame(state, inputs):
                x, key = inputs
                y, state = net.apply(params, state, x, rng=key)
                return state, ((y**2).mean(), macs.gate_loss(table, state))

            _, (task, gate) = lax.scan(frame, state, (CLIP[:4], keys))
            return task.mean() + gate[1:].mean()

        keys = jax.random.split(jax.random.key(3), 4)
        grads[remat] = jax.jit(jax.grad(loss))(params, state, keys)
    chex.assert_trees_all_close(grads[True], grads[False], atol=1e-6, rtol=1e-5)
    learned = {"gates": grads[False]["gates"], "params": grads[False]["model"]["params"]}
    for leaf in jax.tree.leaves(learned):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0


def test_gradient_of_a_clip_at_threshold_zero_is_that_of_the_dense_network(variables):
    net = skip(Net().apply, gate=AlwaysGate(block=2))
    params, state = net.init(variables, CLIP[0])

    def skipped(model):
        given = {"model": model, "gates": params["gates"]}
        _, y = lax.scan(lambda s, x: net.apply(given, s, x)[::-1], state, CLIP[:4])
        return (y**2).mean()

    def dense(model):
        return (jax.vmap(lambda x: Net().apply(model, x))(CLIP[:4]) ** 2).mean()

    chex.assert_trees_all_close(
        jax.jit(jax.grad(skipped))(variables), jax.jit(jax.grad(dense))(variables), atol=1e-5
    )


def test_a_gate_learns_to_skip_what_costs_and_helps_nothing(variables):
    """Eq. 9 alone drives every gate shut: the straight-through gradient has the right sign."""
    net = skip(Net().apply, gate=GumbelGate(block=2, bias_init=1.65))
    params, state = net.init(variables, CLIP[0], key=jax.random.key(2))
    table = net.table(variables, CLIP[0])
    _, state = net.apply(params, state, CLIP[0])

    def cost(gates, key):
        after = net.apply({"model": variables, "gates": gates}, state, CLIP[1], rng=key)[1]
        return macs.gate_loss(table, after)

    @jax.jit
    def update(gates, key):
        value, grad = jax.value_and_grad(cost)(gates, key)
        return jax.tree.map(lambda g, d: g - 20.0 * d, gates, grad), value

    gates, values = params["gates"], []
    for key in jax.random.split(jax.random.key(4), 25):
        gates, value = update(gates, key)
        values.append(float(value))
    assert values[0] > 0.6
    assert np.mean(values[-5:]) < 0.2


def test_sampling_takes_the_key_and_serving_does_not(variables):
    net = skip(Net().apply, gate=GumbelGate(block=1, bias_init=0.0))
    params, state = net.init(variables, CLIP[0], key=jax.random.key(2))
    apply = jax.jit(net.apply)
    _, state = apply(params, state, CLIP[0])
    sampled = [
        apply(params, state, CLIP[1], rng=jax.random.key(k))[1]["first"].fired for k in (0, 0, 1)
    ]
    chex.assert_trees_all_equal(sampled[0], sampled[1])
    assert float(jnp.abs(sampled[0] - sampled[2]).sum()) > 0
    both = apply(params, state, CLIP[1], rng=jax.random.key(0))[1]
    assert both["first"].fired.shape == both["second"].fired.shape
    assert float(jnp.abs(both["first"].fired - both["second"].fired).sum()) > 0
