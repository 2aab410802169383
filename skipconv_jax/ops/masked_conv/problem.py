"""The static part of a masked convolution, hashable."""

import dataclasses

from skipconv_jax.ops.geometry import Conv


@dataclasses.dataclass(frozen=True)
class Problem:
    """Geometry, block side b, and whether fired blocks are recomputed or added to."""

    conv: Conv
    block: int
    recompute: bool
