"""The masked convolution: one contract, several implementations.

    add:      out = base + up(mask) * (w * operand)
    replace:  out = base where the mask is 0, f(w * operand + bias) where it is 1

`operand` `(B, *spatial, Ci)`, `kernel` `(*window, Ci / groups, Co)`, `base` `(B, *out_spatial, Co)`
in the accumulation dtype, `mask` `(B, *grid)` in {0, 1} over blocks of b^rank outputs. Where the
mask is 0 the output is bitwise `base`. f is an `Epilogue` or nothing. Every implementation has the
gradients of the dense one.

An implementation is a module of two functions: `supports(problem)` says, before anything is
computed, None or why it does not take a case, and `masked_conv(problem, arrays)` computes one that
it takes. So an error from inside one is a bug and is never mistaken for a case it lacks. With none
named, the platform computations go to by default decides which are asked. A Pallas kernel named
away from its own platform is interpreted: right and slow.
"""

from skipconv_jax.ops.masked_conv.api import (
    IMPLEMENTATIONS,
    implementation_name,
    masked_conv,
    preferred,
    why_unsupported,
)
from skipconv_jax.ops.masked_conv.epilogue import Epilogue
from skipconv_jax.ops.masked_conv.problem import Arrays, Implementation, Problem

__all__ = [
    "IMPLEMENTATIONS",
    "Arrays",
    "Epilogue",
    "Implementation",
    "Problem",
    "implementation_name",
    "masked_conv",
    "preferred",
    "why_unsupported",
]
