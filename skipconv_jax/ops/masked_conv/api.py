"""Which implementation computes a masked convolution, and the call itself."""

import functools
import importlib
from typing import cast

import jax

from skipconv_jax.ops.geometry import Conv
from skipconv_jax.ops.masked_conv.epilogue import Epilogue
from skipconv_jax.ops.masked_conv.problem import Arrays, Implementation, Problem

# Modules of this package, imported when they are asked: Pallas alone takes longer than the rest.
_MODULES = {
    "dense": "dense",
    "blocks": "blocks",
    "packed": "packed",
    "pallas_tpu": "pallas.tpu",
    "pallas_gpu": "pallas.gpu",
}
IMPLEMENTATIONS = tuple(_MODULES)
# What `dense` was called in 0.1.0.
_FORMER_NAMES = {"reference": "dense"}

# Below this side a block's loop iteration costs more than its share of the dense convolution.
_SMALLEST_WORTHWHILE_BLOCK = 4
_BY_PLATFORM = {
    "cpu": ("blocks",),
    "gpu": ("pallas_gpu", "packed"),
    "tpu": ("pallas_tpu",),
}


def implementation_name(name: str | None) -> str | None:
    """The name in `IMPLEMENTATIONS` of a named implementation; None stays None.

    Raises:
      ValueError: an unknown one.
    """
    known = _FORMER_NAMES.get(name, name) if name is not None else None
    if known is not None and known not in _MODULES:
        raise ValueError(f"`implementation` (={name!r}) must be one of {IMPLEMENTATIONS}, or None.")
    return known


@functools.cache
def _implementation(name: str) -> Implementation:
    return cast(Implementation, importlib.import_module(f"{__package__}.{_MODULES[name]}"))


def why_unsupported(implementation: str, problem: Problem) -> str | None:
    """None where a named implementation takes the problem, else the reason why it does not.

    Raises:
      ValueError: an unknown implementation.
    """
    return _implementation(str(implementation_name(implementation))).supports(problem)


def preferred(problem: Problem) -> str:
    """The best implementation that takes the problem on the platform JAX computes on by default."""
    if problem.block >= _SMALLEST_WORTHWHILE_BLOCK:
        for name in _BY_PLATFORM.get(jax.default_backend(), ()):
            if _implementation(name).supports(problem) is None:
                return name
    return "dense"


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
    """Computes the masked convolution; see the package.

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
    if epilogue is not None and not recompute:
        raise ValueError(
            "`epilogue` must be None with `recompute=False`: an output that is added to holds the "
            "convolution before its activation; apply the epilogue to the result."
        )
    arrays = Arrays(operand, kernel, bias, base, mask, epilogue)
    problem = Problem.of(arrays, conv, block, recompute)
    name = implementation_name(implementation) or preferred(problem)
    if implementation is not None and (reason := why_unsupported(name, problem)):
        raise NotImplementedError(f"{name}: {reason}")
    return _implementation(name).masked_conv(problem, arrays)
