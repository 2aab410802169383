"""The masked convolution: one contract, several implementations.

    add:      out = base + up(mask) * (w * operand)
    replace:  out = base where the mask is 0, f(w * operand + bias) where it is 1

`operand` `(B, *spatial, Ci)`, `kernel` `(*window, Ci / groups, Co)`, `base` `(B, *out_spatial, Co)`
in the accumulation dtype, `mask` `(B, *grid)` in {0, 1} over blocks of b^rank outputs. Where the
mask is 0 the output is bitwise `base`. f is an `Epilogue` or nothing. Every implementation has the
gradients of the dense one.

An implementation is a function of a `Problem` and the arrays that raises `NotImplementedError`,
naming the case, where it can't. With none named, the platform computations go to by default decides
which are tried. A Pallas kernel named away from its own platform is interpreted: right and slow.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax

from skipconv_jax.ops.geometry import Conv
from skipconv_jax.ops.masked_conv import blocks, packed, pallas_gpu, pallas_tpu, reference
from skipconv_jax.ops.masked_conv.epilogue import Epilogue
from skipconv_jax.ops.masked_conv.problem import Problem

Implementation = Literal["reference", "blocks", "packed", "pallas_tpu", "pallas_gpu"]

_IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "reference": reference.masked_conv,
    "blocks": blocks.masked_conv,
    "packed": packed.masked_conv,
    "pallas_tpu": pallas_tpu.masked_conv,
    "pallas_gpu": pallas_gpu.masked_conv,
}
IMPLEMENTATIONS = tuple(_IMPLEMENTATIONS)
# Those that take the epilogue themselves; after the others it is a pass of its own.
_FUSES_EPILOGUE = ("blocks", "packed", "pallas_tpu", "pallas_gpu")

# Below this side a block's loop iteration costs more than its share of the dense convolution.
_SMALLEST_WORTHWHILE_BLOCK = 4
_BY_PLATFORM = {
    "cpu": ("blocks",),
    "gpu": ("pallas_gpu", "packed"),
    "tpu": ("pallas_tpu",),
}


def _preferred(problem: Problem) -> tuple[str, ...]:
    """Implementations to try, best first, on the platform computations go to by default."""
    if problem.block < _SMALLEST_WORTHWHILE_BLOCK:
        return ("reference",)
    return (*_BY_PLATFORM.get(jax.default_backend(), ()), "reference")


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
    epilogue: Epilogue | None = None,
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
      epilogue: scale, shift, residual and activation of recomputed blocks, in the same pass.

    Returns:
      `(B, *out_spatial, Co)` in the dtype of `base`.

    Raises:
      ValueError: an unknown implementation, or an epilogue on blocks that are added to.
      NotImplementedError: a named implementation that does not take the case.
    """
    problem = Problem(conv, block, recompute)
    if epilogue is not None and not recompute:
        raise ValueError(
            "`epilogue` must be None with `recompute=False`: an output that is added to holds the "
            "convolution before its activation; apply the epilogue to the result."
        )
    arrays = (operand, kernel, bias, base, mask)
    if implementation is not None:
        if implementation not in _IMPLEMENTATIONS:
            raise ValueError(
                f"`implementation` (={implementation!r}) must be one of {IMPLEMENTATIONS}, or None."
            )
        return _run(implementation, problem, arrays, epilogue)
    for name in _preferred(problem):
        try:
            return _run(name, problem, arrays, epilogue)
        except NotImplementedError:
            continue
    raise AssertionError("the dense implementation takes every case")


def _run(
    name: str, problem: Problem, arrays: tuple[Any, ...], epilogue: Epilogue | None
) -> jax.Array:
    if epilogue is None:
        return _IMPLEMENTATIONS[name](problem, *arrays)
    if name in _FUSES_EPILOGUE:
        return _IMPLEMENTATIONS[name](problem, *arrays, epilogue)
    *_, base, mask = arrays
    z = _IMPLEMENTATIONS[name](problem, *arrays)
    return epilogue.where_fired(z, base, mask, problem.block)
