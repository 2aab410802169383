"""Quick initialisation: one flat random draw instead of one compiled draw per layer."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from skipconv_jax.models.layers import Normal

Path = tuple[str, ...]
_STATISTICS = {"mean": 0.0, "var": 1.0}


def init_variables(
    model: nn.Module, key: jax.Array, x: Any, *args: Any, **kwargs: Any
) -> dict[str, Any]:
    """Variables of `model` for an input like `x`, drawn from the initialisers its modules name.

    Same distribution as `model.init(key, x, *args, **kwargs)`, other numbers. The network is only
    traced, never run or compiled (293 convolutions in one jitted `init` take minutes on some CPU
    versions of XLA); every `Normal` kernel is then cut from one flat float32 draw. Call it outside
    `jit`.

    Args:
        model: a Flax Linen module.
        key: a PRNG key.
        x: the input, or its shape and dtype as a `jax.ShapeDtypeStruct`.
        args, kwargs: handed to the module, as in `model.init`.

    Returns:
        `{"params": ..., "batch_stats": ...}`, as the module declares them.

    Raises:
        ValueError: a variable's module has no `<leaf>_init` field to draw it from.
    """
    shapes, modules = _trace(model, x, args, kwargs)
    leaves = traverse_util.flatten_dict(shapes)
    initialisers = {path: _initialiser(path, modules) for path in leaves}

    drawn = [path for path in leaves if isinstance(initialisers[path], Normal)]
    flat_key, key = jax.random.split(key)
    total = sum(math.prod(leaves[path].shape) for path in drawn)
    noise = np.asarray(jax.random.normal(flat_key, (total,), jnp.float32))

    values: dict[Path, jax.Array] = {}
    offset = 0
    for index, (path, leaf) in enumerate(leaves.items()):
        initialiser = initialisers[path]
        if isinstance(initialiser, Normal):
            size = math.prod(leaf.shape)
            block = noise[offset : offset + size].reshape(leaf.shape)
            values[path] = jnp.asarray(block * np.float32(initialiser.std(leaf.shape)), leaf.dtype)
            offset += size
        else:
            values[path] = initialiser(jax.random.fold_in(key, index), leaf.shape, leaf.dtype)
    return traverse_util.unflatten_dict(values)


def _trace(
    model: nn.Module, x: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[Path, nn.Module]]:
    """Shapes of all variables, and the module at each path."""
    modules: dict[Path, nn.Module] = {}

    def record(
        call: Any, call_args: Any, call_kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        modules[context.module.path] = context.module
        return call(*call_args, **call_kwargs)

    def init(x: Any) -> Any:
        with nn.intercept_methods(record):
            return model.init(jax.random.key(0), x, *args, **kwargs)

    return jax.eval_shape(init, x), modules


def _initialiser(path: Path, modules: Mapping[Path, nn.Module]) -> Any:
    collection, *parents, leaf = path
    if collection == "batch_stats" and leaf in _STATISTICS:
        return nn.initializers.constant(_STATISTICS[leaf])
    module = modules.get(tuple(parents))
    initialiser = getattr(module, f"{leaf}_init", None)
    if initialiser is None:
        raise ValueError(
            f"`model` declares the variable {'/'.join(path)} in a {type(module).__name__} without "
            "a field "
            f"`{leaf}_init`; add one, or use `model.init`"
        )
    return initialiser
