"""A detector of a few convolutions in EfficientDet's two halves, which compiles at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest


class Halves(nn.Module):
    """Levels of stride 8, 16 and 32 by convolutions whose windows do not overlap.

    So a shift of 32 pixels moves all features, and exactly.
    """

    channels: tuple[int, int, int] = (4, 5, 6)

    def setup(self):
        self.backbone = [
            nn.Conv(c, (k, k), (k, k)) for c, k in zip(self.channels, (8, 2, 2), strict=True)
        ]
        self.heads = [nn.Conv(3, (3, 3)) for _ in self.channels]

    def __call__(self, x):
        return self.detect(self.extract(x))

    def extract(self, x):
        levels = []
        for conv in self.backbone:
            x = nn.tanh(conv(x))
            levels.append(x)
        return levels

    def detect(self, levels):
        rows = [
            head(x).reshape(x.shape[0], -1, 3) for head, x in zip(self.heads, levels, strict=True)
        ]
        return jnp.concatenate(rows, axis=1)


@pytest.fixture(scope="session")
def halves():
    """The model, its variables and frames `(T, B, H, W, 3)`."""
    frames = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2, 64, 96, 3)), jnp.float32)
    model = Halves()
    return model, _drawn(model, 1, frames[0]), frames


def _drawn(model, seed, *x):
    """Variables of deviation 1 / sqrt(fan in), biases too; nothing is compiled."""
    rng = np.random.default_rng(seed)

    def leaf(shape):
        scale = np.prod(shape.shape[:-1]) ** -0.5 if len(shape.shape) > 1 else 0.1
        return jnp.asarray(scale * rng.normal(size=shape.shape), jnp.float32)

    return jax.tree.map(leaf, jax.eval_shape(model.init, jax.random.key(0), *x))


@pytest.fixture(scope="session")
def drawn():
    """`drawn(model, seed, *inputs)`: random variables, none of them zero."""
    return _drawn


def _check(net, variables, frames):
    """Scan, separate frames, separate streams and their resets agree; nothing recompiles."""
    params, state = net.init(variables, frames[0], key=jax.random.key(2))
    traced = []

    def counted(params, state, x):
        traced.append(None)
        return net.apply(params, state, x)

    step = jax.jit(counted)
    flags = {3: jnp.array([False, True])}

    def run(frames, state, flags):
        outputs, spent = [], []
        for t, x in enumerate(frames):
            if t in flags:
                state = net.reset(state, flags[t])
            y, state = step(params, state, x)
            outputs.append(y)
            spent.append(net.spent(state))
        return np.stack(outputs), np.stack(spent), state

    outputs, spent, after = run(frames, state, {})
    structure = jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == structure

    carry, (scanned, counts) = jax.jit(
        lambda state: jax.lax.scan(
            lambda s, x: (lambda y, s: (s, (y, net.spent(s))))(*net.apply(params, s, x)),
            state,
            frames,
        )
    )(state)
    np.testing.assert_allclose(scanned, outputs, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(counts, spent)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), carry, after)

    again, _, _ = run(frames[::-1], net.reset(after), {})
    first, _, _ = run(frames[::-1], state, {})
    np.testing.assert_array_equal(again, first)  # nothing of the past is left

    together, costs, _ = run(frames, state, flags)
    assert not np.array_equal(together[3:, 1], outputs[3:, 1])
    np.testing.assert_array_equal(together[:, 0], outputs[:, 0])
    assert len(traced) == 1
    for b in range(2):
        alone = frames[:, b : b + 1]
        _, one = net.init(variables, alone[0], key=jax.random.key(2))
        y, cost, _ = run(alone, one, {t: f[b : b + 1] for t, f in flags.items()})
        np.testing.assert_allclose(y[:, 0], together[:, b], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(cost[:, 0], costs[:, b])
    assert len(traced) == 2  # once per number of streams


@pytest.fixture(scope="session")
def check_streams():
    """`check_streams(net, variables, frames (T, 2, ...))`, where t = 3 is no key frame."""
    return _check
