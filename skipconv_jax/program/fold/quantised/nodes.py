"""The operations of a quantised network; `ops/quantised.py` says what each does, bit by bit.

Tensors between them are int8 or uint8, `(B, H, W, C)`. Nodes that only move values take them as
they are: `UpsampleNode`, `CropNode`, `ConcatNode`, `ChannelsNode` (no zeros), `SpaceToDepthNode`,
`DepthToSpaceNode`, `LayoutNode`, `ReshapeNode`, `FlattenNode`, `ResizeNode` of one tap of weight 1,
`PadNode` (its value is a q), and `PoolNode` of 'max', whose padding is the dtype's least.
"""

import dataclasses

import numpy as np

from skipconv_jax.ops.quantised import Finish, Grid
from skipconv_jax.ops.quantised_conv import IntConv
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
class QConvNode(IntConv, Node):
    """A convolution on integers, see `IntConv`.

    Attributes:
      name: of the convolution, as `skip` names it.
    """

    name: str


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
