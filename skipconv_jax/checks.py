"""Arguments that several functions take, refused with a message where they are wrong."""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp


def positive_integer(name: str, value: Any, fix: str) -> int:
    """`value` as a Python integer, NumPy's integers included.

    Raises:
      ValueError: no integer, a bool, or below 1.
    """
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"`{name}` (={value!r}) must be a positive integer; {fix}")
    return number


def is_finite(value: Any) -> bool:
    """Whether `value` is one real number, neither infinite nor NaN."""
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def instance(name: str, value: Any, kind: type, example: str) -> None:
    """Refuses what does not behave as `kind` does: names, and classes that were not instantiated.

    Raises:
      ValueError: it does not.
    """
    if isinstance(value, type) or not isinstance(value, kind):
        raise ValueError(f"`{name}` (={value!r}) must be an instance of a {name}; use {example}.")


def key(name: str, value: Any) -> None:
    """Refuses what is no key of `jax.random`.

    Raises:
      ValueError: it is none.
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None or not (
        jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == jnp.uint32 and value.shape == (2,))
    ):
        raise ValueError(f"`{name}` (={value!r}) must be a key; use jax.random.key(0).")
