"""The masked convolution: one contract, several implementations.

    add:      out = base + up(mask) * (w * operand)
    replace:  out = base where the mask is 0, w * operand + bias where it is 1

`operand` `(B, *spatial, Ci)`, `kernel` `(*window, Ci / groups, Co)`, `base` `(B, *out_spatial, Co)`
in the accumulation dtype, `mask` `(B, *grid)` in {0, 1} over blocks of b^rank outputs. Where the
mask is 0 the output is bitwise `base`. Every implementation has the gradients of the dense one.

An implementation is a function of a `Problem` and the arrays that raises `NotImplementedError`,
naming the case, where it can't.
"""

from collections.abc import Callable
from typing import Literal

import jax

from skipconv_jax.ops.conv import blocks, reference
from skipconv_jax.ops.conv.problem import Problem
from skipconv_jax.ops.geometry import Conv

Implementation = Literal["reference", "blocks"]

_IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "reference": reference.masked_conv,
    "blocks": blocks.masked_conv,
}
IMPLEMENTATIONS = tuple(_IMPLEMENTATIONS)

# Below this side a block's loop iteration costs more than its share of the dense convolution.
_SMALLEST_WORTHWHILE_BLOCK = 4


def _preferred(problem: Problem) -> tuple[str, ...]:
    """Implementations to try, best first, on the platform computations go to by default."""
    if problem.block >= _SMALLEST_WORTHWHILE_BLOCK and jax.default_backend() == "cpu":
        return ("blocks", "reference")
    return ("reference",)


def masked_conv(
    operand: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    base: jax.Array,
    mask: jax.Array,
    *,
    conv: Conv,
    block: int,
    recompute: bool,
    implementation: str | None = None,
) -> jax.Array:
    """Computes the masked convolution; see the module.

    Args:
      operand: `(B, *spatial, Ci)`.
      kernel: `(*window, Ci / groups, Co)`.
      bias: `(Co,)` or None; used by recomputed blocks only.
      base: `(B, *out_spatial, Co)`, kept where the mask is 0.
      mask: `(B, *grid)` in {0, 1}.
      conv: geometry.
      block: side b of the mask's blocks.
      recompute: 'replace' if True, 'add' if False.
      implementation: one of `IMPLEMENTATIONS`, or None for the best that takes the case.

    Returns:
      `(B, *out_spatial, Co)` in the dtype of `base`.

    Raises:
      ValueError: an unknown implementation.
      NotImplementedError: a named implementation that does not take the case.
    """
    problem = Problem(conv, block, recompute)
    arrays = (operand, kernel, bias, base, mask)
    if implementation is not None:
        if implementation not in _IMPLEMENTATIONS:
            raise ValueError(
                f"`implementation` (={implementation!r}) must be one of {IMPLEMENTATIONS}, or None."
            )
        return _IMPLEMENTATIONS[implementation](problem, *arrays)
    for name in _preferred(problem):
        try:
            return _IMPLEMENTATIONS[name](problem, *arrays)
        except NotImplementedError:
            continue
    raise AssertionError("the dense implementation takes every case")
