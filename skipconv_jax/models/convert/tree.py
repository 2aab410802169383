"""Flax variables to and from flat PyTorch state dicts.

Our modules bear PyTorch's names, so a key differs in its separator and its last word only:

    params/stage2/0/branches/0/0/conv1/kernel  (3, 3, 32, 32)  <->
    stage2.0.branches.0.0.conv1.weight  (32, 32, 3, 3) params/bn1/scale
    <->  bn1.weight batch_stats/bn1/mean                                       <->  bn1.running_mean

Kernels turn from HWIO to OIHW (dense ones from IO to OI); everything else keeps its shape.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

Path = tuple[str, ...]
State = dict[str, np.ndarray]

_COUNTER = "num_batches_tracked"  # of PyTorch's batch norm; nothing here reads it
_WORDS = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0)}


def to_torch(variables: Mapping[str, Any]) -> State:
    """`variables` as a PyTorch state dict of NumPy arrays, with a zero counter per batch norm.

    Args:
        variables: `{"params": ..., "batch_stats": ...}` of a network of this package.

    Returns:
        Keys and shapes of the public PyTorch implementation, float32 (counters int64).
    """
    state: State = {}
    for path, leaf in traverse_util.flatten_dict(dict(variables)).items():
        value = np.asarray(leaf)
        if path[-1] == "kernel":
            value = value.transpose(_TO_TORCH[value.ndim])
        state[_key(path)] = np.array(value, order="C")  # a copy: JAX's buffers are read-only
        if path[-1] == "var":
            state[".".join((*path[1:-1], _COUNTER))] = np.zeros((), np.int64)
    return state


def from_torch(
    state: Mapping[str, np.ndarray], variables: Mapping[str, Any], *, replace: Sequence[str] = ()
) -> dict[str, Any]:
    """A PyTorch state dict as variables of the structure, shapes and dtypes of `variables`.

    Args:
        state: key to array, as `load_state` reads it. Counters `num_batches_tracked` may be there
            or not.
        variables: freshly initialised variables of the network to fill; neither they nor `state`
            change.
        replace: `fnmatch` patterns of keys (say `"final_layer.*"`) that keep their value of
            `variables`, whatever `state` holds for them: to start from a checkpoint with another
            number of joints or classes.

    Raises:
        ValueError: keys that are missing, unexpected or of another shape (all of them are listed),
            or a pattern of `replace` that names no key.
    """
    leaves = traverse_util.flatten_dict(dict(variables))
    keys = {_key(path): path for path in leaves}
    replaced = _matching(keys, replace)
    _check(state, {key: _torch_shape(path, leaves[path]) for key, path in keys.items()}, replaced)

    values: dict[Path, Any] = {}
    for key, path in keys.items():
        leaf = leaves[path]
        if key in replaced:
            values[path] = jnp.asarray(leaf)
            continue
        value = np.asarray(state[key])
        if path[-1] == "kernel":
            value = value.transpose(_FROM_TORCH[value.ndim])
        values[path] = jnp.asarray(value, leaf.dtype)
    return traverse_util.unflatten_dict(values)


def _key(path: Path) -> str:
    collection, *parents, leaf = path
    return ".".join((*parents, _WORDS.get((collection, leaf), leaf)))


def _torch_shape(path: Path, leaf: Any) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return tuple(leaf.shape)
    return tuple(leaf.shape[i] for i in _TO_TORCH[len(leaf.shape)])


def _matching(keys: Iterable[str], patterns: Sequence[str]) -> set[str]:
    keys = list(keys)
    matching: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(keys, pattern)
        if not found:
            raise ValueError(
                f"`replace` (={list(patterns)}) holds {pattern!r}, which names no key of the "
                "network; its keys look like "
                f"{keys[0]!r} and {keys[-1]!r}"
            )
        matching.update(found)
    return matching


def _check(
    state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], replaced: set[str]
) -> None:
    missing = [key for key in expected if key not in state and key not in replaced]
    unexpected = [key for key in state if key not in expected and not key.endswith(_COUNTER)]
    shapes = [
        f"{key}: {tuple(state[key].shape)}, expected {shape}"
        for key, shape in expected.items()
        if key in state and key not in replaced and tuple(state[key].shape) != shape
    ]
    if not (missing or unexpected or shapes):
        return
    parts = [
        f"{len(keys)} {what}:\n  " + "\n  ".join(keys)
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if keys
    ]
    raise ValueError(
        "`state` must have the keys and shapes of the network; build the network the checkpoint is "
        "of, or name what "
        "should keep its fresh value in `replace`\n" + "\n".join(parts)
    )
