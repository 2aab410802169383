"""FlowNet: a copy before training, shapes of every level at any size, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.models import init_variables
from skipconv_jax.models.efficientdet import efficientdet
from skipconv_jax.models.efficientnet import level_channels
from skipconv_jax.models.flow_net import FlowNet


def test_starts_as_a_copy_at_an_odd_size():
    net = FlowNet((3, 4, 5), width=2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 75, 106, 3)), jnp.float32)
    variables = init_variables(net, jax.random.key(0), *x)
    field, scales = jax.jit(net.apply)(variables, *x)
    np.testing.assert_array_equal(field, np.zeros((2, 10, 14, 2), np.float32))
    shapes = [(2, 10, 14, 3), (2, 5, 7, 4), (2, 3, 4, 5)]
    assert [s.shape for s in scales] == shapes
    for scale in scales:
        np.testing.assert_array_equal(scale, 1.0)


@pytest.mark.parametrize("name", ["d0", "d3"])
def test_levels_are_those_of_the_detector(name):
    model = efficientdet(name, classes=1)
    x = jax.ShapeDtypeStruct((2, 75, 106, 3), jnp.float32)

    def levels(x):
        return model.init_with_output(jax.random.key(0), x, method="extract")[0]

    found = jax.eval_shape(levels, x)
    net = FlowNet(level_channels(model.width))
    _, scales = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, x)[0], x)
    assert [s.shape for s in scales] == [level.shape for level in found]


def test_computes_in_bfloat16_and_answers_in_float32():
    net = FlowNet((3, 4, 5), width=2, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    (field, scales), variables = jax.eval_shape(
        lambda x: net.init_with_output(jax.random.key(0), x, x), x
    )
    assert {leaf.dtype for leaf in (field, *scales, *jax.tree.leaves(variables))} == {
        jnp.dtype(jnp.float32)
    }


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"`channels` .* three levels"):
        FlowNet((3, 4))
    with pytest.raises(ValueError, match=r"`width` \(=0\) must be at least 1"):
        FlowNet((3, 4, 5), width=0)
    shapes = [jax.ShapeDtypeStruct((1, n, 64, 3), jnp.float32) for n in (64, 32)]
    with pytest.raises(ValueError, match=r"`key` .* must be frames of one shape"):
        jax.eval_shape(FlowNet((3, 4, 5)).init, jax.random.key(0), *shapes)
