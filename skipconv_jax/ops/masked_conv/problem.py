"""What a masked convolution is asked: the static problem, its arrays, and who may answer."""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from skipconv_jax.ops.geometry import Conv
from skipconv_jax.ops.masked_conv.epilogue import Epilogue


class Arrays(NamedTuple):
    """What is multiplied, kept and added to.

    Attributes:
      operand: `(B, *spatial, Ci)`.
      kernel: `(*window, Ci / groups, Co)`.
      bias: `(Co,)` or None; used by recomputed blocks only.
      base: `(B, *out_spatial, Co)`, kept where the mask is 0.
      mask: `(B, *grid)` in {0, 1}.
      epilogue: of recomputed blocks, or None.
    """

    operand: jax.Array
    kernel: jax.Array
    bias: jax.Array | None
    base: jax.Array
    mask: jax.Array
    epilogue: Epilogue | None = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """All an implementation may decide by: hashable, and known before anything is computed.

    Attributes:
      conv: geometry.
      block: side b of the mask's blocks.
      recompute: whether fired blocks are recomputed ('replace') or added to ('add').
      operand_dtype: of what is convolved.
      kernel_dtype: of the kernel.
      dtype: of base and output, the accumulation dtype.
    """

    conv: Conv
    block: int
    recompute: bool
    operand_dtype: np.dtype
    kernel_dtype: np.dtype
    dtype: np.dtype

    @classmethod
    def of(cls, arrays: Arrays, conv: Conv, block: int, recompute: bool) -> "Problem":
        """The problem that these arrays pose."""
        dtypes = (np.dtype(a.dtype) for a in (arrays.operand, arrays.kernel, arrays.base))
        return cls(conv, block, recompute, *dtypes)


class Implementation(Protocol):
    """One way to compute a masked convolution; a module with these two functions is one."""

    def supports(self, problem: Problem) -> str | None:
        """None where the problem is taken, else the reason why it is not."""
        ...

    def masked_conv(self, problem: Problem, arrays: Arrays) -> Any:
        """`(B, *out_spatial, Co)`; called only with a problem that is supported."""
        ...


def negative_padding(problem: Problem) -> str | None:
    """Why an implementation by tiles can't: a negative pad would cut them out of the frame."""
    if any(p < 0 for pair in problem.conv.padding for p in pair):
        return f"negative padding {problem.conv.padding}"
    return None
