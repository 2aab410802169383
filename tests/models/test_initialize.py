"""Quick initialisation draws from the initialisers the modules name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.models import hrnet_small, init_variables
from skipconv_jax.models.layers import Normal

X = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    return init_variables(hrnet_small(width=8), jax.random.key(0), X)


def test_same_structure_as_init(variables):
    shapes = jax.eval_shape(hrnet_small(width=8).init, jax.random.key(0), X)
    assert jax.tree.structure(variables) == jax.tree.structure(shapes)
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, variables, shapes)
    assert all(jax.tree.leaves(same))


def test_kernels_are_he_normal_and_the_head_is_small(variables):
    params = variables["params"]
    kernel = params["stage4"]["0"]["branches"]["3"]["0"]["conv1"]["kernel"]  # 3x3, 64 to 64
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)
    assert np.abs(np.mean(kernel)) < 3 * np.std(kernel) / np.sqrt(kernel.size)
    assert np.std(params["final_layer"]["kernel"]) == pytest.approx(1e-3, rel=0.3)


def test_the_rest_starts_neutral(variables):
    norm, statistics = variables["params"]["bn1"], variables["batch_stats"]["bn1"]
    for value, expected in [
        (norm["scale"], 1), (norm["bias"], 0), (statistics["mean"], 0), (statistics["var"], 1),
    ]:  # fmt: skip
        np.testing.assert_array_equal(value, np.full(8, expected, np.float32))


def test_keys_decide(variables):
    again = init_variables(hrnet_small(width=8), jax.random.key(0), X)
    other = init_variables(hrnet_small(width=8), jax.random.key(1), X)
    kernel = lambda v: np.asarray(v["params"]["conv1"]["kernel"])  # noqa: E731
    np.testing.assert_array_equal(kernel(variables), kernel(again))
    assert np.all(kernel(variables) != kernel(other))


def test_other_initialisers_are_called():
    model = nn.Dense(4, kernel_init=nn.initializers.constant(0.5))
    variables = init_variables(model, jax.random.key(0), jnp.zeros((1, 3)))
    np.testing.assert_array_equal(variables["params"]["kernel"], np.full((3, 4), 0.5, np.float32))


def test_an_unknown_variable_is_named():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("gain", nn.initializers.ones, ())

    with pytest.raises(ValueError, match="params/gain in a Odd without a field `gain_init`"):
        init_variables(Odd(), jax.random.key(0), jnp.zeros((1,)))


def test_normal_alone():
    draw = Normal(0.1)(jax.random.key(0), (3, 3, 8, 16))
    assert draw.shape == (3, 3, 8, 16)
    assert np.std(draw) == pytest.approx(0.1, rel=0.1)
