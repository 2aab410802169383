"""The operations of a folded network, and the graph they form."""

import dataclasses
from collections import Counter
from typing import Any

import jax
import numpy as np

from skipconv_jax.ops.geometry import Conv
from skipconv_jax.program.fold.views import Ref, View

# Element-wise functions by name, and how many parameters each has.
PARAMETERS = {
    "clip": 2, "hard_sigmoid": 2, "leaky_relu": 1, "elu": 1, "integer_pow": 0,
} | dict.fromkeys(
    (
        "none", "relu", "relu6", "swish", "logistic", "tanh", "hard_swish", "gelu", "gelu_tanh",
        "mish", "softplus", "erf", "exp", "log", "abs", "sqrt", "rsqrt", "square",
    ),
    0,
)  # fmt: skip
UNARY = tuple(PARAMETERS)
ACTIVATIONS = (
    "none", "relu", "relu6", "clip", "swish", "logistic", "tanh", "hard_swish", "hard_sigmoid",
    "leaky_relu", "elu", "gelu", "gelu_tanh", "mish", "softplus",
)  # fmt: skip
"""Those that a convolution or a sum takes over."""
BINARY = ("add", "sub", "mul", "div", "max", "min")


@dataclasses.dataclass
class Node:
    """One operation; `output` is the number of the tensor it makes."""

    inputs: tuple[Ref, ...]
    output: Ref


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """What a constant was dequantised from: array = steps scale, the zero point taken off.

    Attributes:
      steps: int8, of the constant's shape.
      scale: float32 `(1,)`, or along one of its axes; `(Co,)` of a convolution's kernel.
    """

    steps: np.ndarray
    scale: np.ndarray


@dataclasses.dataclass
class ConvNode(Node):
    """act(conv(x) + bias + residual).

    Attributes:
      name: of the convolution, as `skip` names it.
      conv: geometry.
      kernel: `(*window, Ci / groups, Co)` float32, what follows it folded in.
      bias: `(Co,)` or None.
      weights_mean: mean |w| of the kernel before folding, for the Output-Norm gate.
      weights_sum: its sum.
      scale: `(Co,)` or None, what was folded into the kernel.
      residual: tensor added before the activation, also the last of `inputs`.
      act: activation after it, one of `ACTIVATIONS`, or 'prelu'.
      params: of the activation.
      slope: `(Co,)` of a 'prelu'.
      taps: `(*window, Ci)` place of each tap in the kernel that `skip` sees, where rewriting moved
        them (a strided convolution that took over a space-to-depth); None where nothing moved.
      levels: what the kernel is quantised as, before folding; None for a float one.
    """

    name: str
    conv: Conv
    kernel: np.ndarray
    bias: np.ndarray | None
    weights_mean: float
    weights_sum: float
    scale: np.ndarray | None = None
    residual: Ref | None = None
    act: str = "none"
    params: tuple[float, ...] = ()
    slope: np.ndarray | None = None
    taps: np.ndarray | None = None
    levels: Levels | None = None


@dataclasses.dataclass
class SumNode(Node):
    """act(sum of weight * input), each upsampled (nearest) by an integer factor first.

    No `weights` are weights of 1.
    """

    factors: tuple[int, ...]
    act: str = "none"
    weights: tuple[float, ...] = ()
    params: tuple[float, ...] = ()

    @property
    def terms(self) -> list[tuple[Ref, int, float]]:
        """Input, factor and weight of each term."""
        weights = self.weights or (1.0,) * len(self.inputs)
        return list(zip(self.inputs, self.factors, weights, strict=True))


@dataclasses.dataclass
class AffineNode(Node):
    """scale * x + shift, each a scalar `()` or per channel `(C,)`."""

    scale: np.ndarray
    shift: np.ndarray


@dataclasses.dataclass
class UnaryNode(Node):
    """An element-wise function, one of `UNARY`; `power` for 'integer_pow'."""

    fn: str
    power: int = 1
    params: tuple[float, ...] = ()


@dataclasses.dataclass
class PReluNode(Node):
    """x where x >= 0, else slope * x; slope per channel `(C,)`."""

    slope: np.ndarray


@dataclasses.dataclass
class BinaryNode(Node):
    """An element-wise function of two tensors, one of `BINARY`; unit axes broadcast."""

    fn: str


@dataclasses.dataclass
class UpsampleNode(Node):
    """Nearest upsampling by an integer factor on every spatial axis."""

    factor: int


@dataclasses.dataclass
class PoolNode(Node):
    """'max', 'sum', 'mean' or 'mean_valid' over windows; padding (low, high) of -inf or 0.

    'mean_valid' divides by the positions of the window that lie inside the map.
    """

    fn: str
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]


@dataclasses.dataclass
class SpatialSumNode(Node):
    """Sum over all spatial axes; `(B, C)`, or `(B, 1, 1, C)` after a reshape."""


@dataclasses.dataclass
class SpatialMaxNode(Node):
    """Maximum over all spatial axes; `(B, C)`."""


@dataclasses.dataclass
class ConcatNode(Node):
    """Concatenation along channels."""


@dataclasses.dataclass
class ChannelsNode(Node):
    """Output channel c is channel `index[c]` of the inputs' channels laid one behind the other.

    -1 is a channel of zeros.
    """

    index: tuple[int, ...]


@dataclasses.dataclass
class PadNode(Node):
    """A constant border: (low, high) rows and columns of `value`."""

    padding: tuple[tuple[int, int], ...]
    value: float = 0.0


@dataclasses.dataclass
class CropNode(Node):
    """Every `strides`-th position from `starts` on, `sizes` of them."""

    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass
class ResizeNode(Node):
    """Separable resampling: output i of an axis is the sum over k of weight[i, k] x[index[i, k]].

    Attributes:
      taps: per spatial axis index and weight, each `(n, k)`.
    """

    taps: tuple[tuple[np.ndarray, np.ndarray], ...]


def axis_taps(
    shape: tuple[int, ...], at: int, index: np.ndarray, weight: np.ndarray | None = None
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """`ResizeNode.taps` that resample axis `at` of a map of this shape and leave the other.

    Args:
      shape: `(B, H, W, C)`.
      at: 1 or 2.
      index: `(n,)` or `(n, k)`.
      weight: of the same shape; 1 where not given.
    """
    table = index.reshape(len(index), -1).astype(np.int64)
    weights = np.ones(table.shape, np.float32) if weight is None else weight.astype(np.float32)
    rest = [np.arange(shape[i])[:, None] for i in (1, 2)]
    made = [(r, np.ones(r.shape, np.float32)) for r in rest]
    made[at - 1] = (table, weights)
    return tuple(made)


@dataclasses.dataclass
class DepthToSpaceNode(Node):
    """(B, H, W, s s C) to (B, s H, s W, C).

    Channel (y s + x) C + c goes to place (y, x); `interleaved`: channel c s s + y s + x (ONNX's
    CRD, torch's PixelShuffle).
    """

    block: int
    interleaved: bool = False


@dataclasses.dataclass
class SpaceToDepthNode(Node):
    """The inverse of `DepthToSpaceNode`."""

    block: int
    interleaved: bool = False


@dataclasses.dataclass
class SoftmaxNode(Node):
    """exp(x) / sum exp(x) over the channels of each position."""


@dataclasses.dataclass
class ReduceNode(Node):
    """'sum', 'mean', 'max' or 'min' over the channels of each position, `(B, H, W, 1)`."""

    fn: str


@dataclasses.dataclass
class LayoutNode(Node):
    """An array of the trace as such: a view of a stored tensor, written out.

    Attributes:
      view: how it is indexed.
    """

    view: View


@dataclasses.dataclass
class ReshapeNode(Node):
    """A reshape that only adds or drops unit spatial axes."""


@dataclasses.dataclass
class CompareNode(Node):
    """x compared with a scalar: 'gt', 'ge', 'lt', 'le'; or 'ne', with itself. Bool."""

    fn: str
    value: float


@dataclasses.dataclass
class FlattenNode(Node):
    """Values of maps `(B, h, w, c)` one behind the other, as `(B, n, k)`; k divides every map."""


@dataclasses.dataclass
class SelectNode(Node):
    """Of `operands` (condition, where false, where true), each a tensor's number or a scalar."""

    operands: tuple[Any, ...]


@dataclasses.dataclass
class OtherNode(Node):
    """An equation without a rule. `operands` holds tensor numbers (as `Ref`) and constants.

    Attributes:
      eqn: the equation.
      operands: per operand a tensor number, or a constant array.
      outputs: all tensors it makes; `output` is the first.
      name: of the convolution, where it is one.
    """

    eqn: Any
    operands: tuple[Any, ...]
    outputs: tuple[Ref, ...]
    name: str = ""


@dataclasses.dataclass
class Graph:
    """Nodes in order of evaluation.

    Attributes:
      nodes: operations.
      inputs: tensor numbers of the frame's arrays.
      outputs: per output array a tensor number, or a constant array.
      tree: structure of the output.
      avals: shape and dtype of every tensor.
    """

    nodes: list[Node]
    inputs: list[Ref]
    outputs: list[Any]
    tree: Any
    avals: dict[Ref, jax.ShapeDtypeStruct]

    def uses(self) -> Counter[Ref]:
        """How often each tensor is read."""
        counts: Counter[Ref] = Counter(r for node in self.nodes for r in node.inputs)
        counts.update(r for r in self.outputs if isinstance(r, int))
        return counts
