"""Small networks that the tests of compression share."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util


class Residual(nn.Module):
    """A strided and a dilated convolution, a residual block, a grouped one and a head with bias."""

    @nn.compact
    def __call__(self, x, train=False):
        def norm(x, name):
            return nn.BatchNorm(not train, momentum=0.9, name=name)(x)

        x = nn.Conv(8, (3, 3), (2, 2), ((1, 1), (1, 1)), use_bias=False, name="stem")(x)
        x = nn.relu(norm(x, "stem_bn"))
        y = nn.Conv(12, (3, 3), kernel_dilation=(2, 2), name="inner")(x)
        y = nn.swish(norm(y, "inner_bn"))
        y = nn.Conv(8, (3, 3), use_bias=False, name="outer")(y)
        x = nn.relu(x + norm(y, "outer_bn"))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=4, name="grouped")(x))
        return nn.Conv(5, (1, 1), name="head")(x)


def _drawn(variables: Any, seed: int) -> Any:
    """Every leaf drawn, as if trained."""
    rng = np.random.default_rng(seed)

    def leaf(path: tuple[str, ...], value: Any) -> jax.Array:
        if path[-1] in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, value.shape), jnp.float32)
        return jnp.asarray(rng.normal(0, 0.3, value.shape), jnp.float32)

    flat = traverse_util.flatten_dict(variables)
    return traverse_util.unflatten_dict({p: leaf(p, v) for p, v in sorted(flat.items())})


@pytest.fixture(scope="session")
def drawn() -> Callable[[Any, int], Any]:
    """`drawn(variables, seed)`."""
    return _drawn


@pytest.fixture(scope="session")
def network() -> tuple[Residual, Any, jax.Array]:
    """A module, its variables, and two frames."""
    x = jax.random.normal(jax.random.key(1), (2, 16, 12, 3))
    model = Residual()
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return model, _drawn(shapes, 0), x
