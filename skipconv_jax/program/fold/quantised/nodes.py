"""The operations of a quantised network; `ops/quantised.py` says what each does, bit by bit.

Tensors between them are int8 or uint8, `(B, H, W, C)`. Nodes that only move values take them as
they are: `UpsampleNode`, `CropNode`, `ConcatNode`, `ChannelsNode` (no zeros), `SpaceToDepthNode`,
`DepthToSpaceNode`, `LayoutNode`, `ReshapeNode`, `FlattenNode`, `ResizeNode` of one tap of weight 1,
`PadNode` (its value is a q), and `PoolNode` of 'max', whose padding is the dtype's least.
"""

import dataclasses

import numpy as np

from skipconv_jax.ops.geometry import Conv
from skipconv_jax.ops.quantised import Finish, Grid
from skipconv_jax.program.fold.nodes import Node


@dataclasses.dataclass
class QuantizeNode(Node):
    """float32 to a grid: clamp(rint(x / scale) + zero), a true division; NaN is the least q."""

    grid: Grid


@dataclasses.dataclass
class DequantizeNode(Node):
    """A grid to float32: float32(q - zero) scale."""

    grid: Grid


@dataclasses.dataclass
class QConvNode(Node):
    """finish(float32(sum w (x - zero) + bias) multiplier); borders have x = zero.

    Attributes:
      name: of the convolution, as `skip` names it.
      conv: geometry.
      grid: of the input.
      kernel: int8 `(*window, Ci / groups, Co)`.
      bias: int32 `(Co,)`.
      multiplier: float32 `(Co,)`: from accumulator to steps of the output before the table (to real
        numbers for an output of float32). Negative where a negative scale was folded in.
      finish: how the output is stored.
      weights_mean: mean |w| of the real kernel as `skip` sees it, for the Output-Norm gate.
      weights_sum: its sum.
      steps: float32 `(Co,)`, what one step of the kernel is worth in the kernel as `skip` sees it.
    """

    name: str
    conv: Conv
    grid: Grid
    kernel: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    finish: Finish
    weights_mean: float
    weights_sum: float
    steps: np.ndarray


@dataclasses.dataclass
class QTableNode(Node):
    """table[q - least q], element by element: any function of one number, or another grid.

    Attributes:
      table: `(256,)` of the output's dtype.
    """

    table: np.ndarray


@dataclasses.dataclass
class QSumNode(Node):
    """finish(tables[0][q0] + tables[1][q1] + ...), added from the left in float32.

    Attributes:
      tables: float32 `(inputs, 256)`: what each q adds, in steps of the output.
      finish: how the sum is stored.
    """

    tables: np.ndarray
    finish: Finish


@dataclasses.dataclass
class QMulNode(Node):
    """finish(float32((a - zeros[0]) (b - zeros[1])) multiplier); unit axes broadcast.

    Attributes:
      zeros: of the two inputs.
      multiplier: float32, to steps of the output.
      finish: how the product is stored.
    """

    zeros: tuple[int, int]
    multiplier: float
    finish: Finish


@dataclasses.dataclass
class QMeanNode(Node):
    """finish(float32(sum over the window of (q - zero)) multiplier), the average pool.

    Attributes:
      zero: of the input.
      window: positions, the whole map for a mean over space.
      strides: of the window.
      padding: (low, high), where q = zero.
      multiplier: float32 scale / (count x output scale), `(oh, ow)` where the count of positions
        inside the map differs, else `()`.
      finish: how the mean is stored.
    """

    zero: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    multiplier: np.ndarray
    finish: Finish
