"""What one convolution, its gate and an activation are, as `ProgramBuilder` takes them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from skipconv_jax.native import packing, schema

LINEAR = ("linear", "magnitude")
_INF = float("inf")
# Parameters that a name has where none are given; a clamp's are its bounds.
_PARAMS: dict[str, tuple[float, ...]] = {
    "none": (-_INF, _INF),
    "relu": (0.0, _INF),
    "relu6": (0.0, 6.0),
    "hard_sigmoid": (1 / 6, 0.5),
    "leaky_relu": (0.01,),
    "elu": (1.0,),
}
_NEED = {"clip": 2}


@dataclasses.dataclass(frozen=True)
class Activation:
    """An element-wise function.

    Attributes:
      fn: one of the schema's `Act`.
      params: hard_sigmoid (alpha, beta): min(max(alpha x + beta, 0), 1); clip (lo, hi); elu and
        leaky_relu (alpha,); none otherwise.
      slope: of prelu, one per channel.
    """

    fn: str = "none"
    params: tuple[float, ...] = ()
    slope: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        schema.value("Act", self.fn)
        params = self.params or _PARAMS.get(self.fn, ())
        need = _NEED.get(self.fn, len(_PARAMS.get(self.fn, ())))
        if len(params) != need:
            raise ValueError(f"`params` (={params}) of {self.fn!r} must be {need} numbers.")
        if (self.fn == "prelu") != bool(self.slope):
            raise ValueError(
                f"`slope` (={self.slope}) goes with `fn` 'prelu' (={self.fn!r}) and only with it."
            )
        object.__setattr__(self, "params", tuple(float(p) for p in params))

    @classmethod
    def of(cls, act: "Activation | str") -> "Activation":
        """An activation, also by its bare name."""
        return cls(act) if isinstance(act, str) else act


@dataclasses.dataclass(frozen=True)
class GateSpec:
    """Which blocks of a convolution fire.

    Attributes:
      kind: 'norm' fires where factor * sum|r| / count > params[0]; 'linear' has `params` = bias,
        then its kernel `(kh, kw, Ci)`, and fires where its logit is >= 0; 'magnitude' is a linear
        one of |r|; 'always'. NaN fires.
      params: of the kind.
      block: side of a block.
      factor: of a norm.
      count: of a norm.
    """

    kind: str = "norm"
    params: Sequence[float] | np.ndarray = (0.0,)
    block: int = 8
    factor: float = 1.0
    count: float = 1.0

    def __post_init__(self) -> None:
        schema.value("Gate", self.kind)

    @property
    def linear(self) -> bool:
        """Whether it is a one-channel convolution."""
        return self.kind in LINEAR

    def words(self, channels: int, stride: int) -> np.ndarray:
        """Parameters as the engine reads them (csrc/kernels/gate.h).

        Args:
          channels: of the convolution's input.
          stride: channels of one stored pixel.
        """
        params = np.asarray(self.params, np.float32).ravel()
        if not self.linear:
            return np.asarray([params[0], self.factor, self.count, 0.0], np.float32)
        taps = params[1:].reshape(-1, channels)
        kernel = np.zeros((taps.shape[0], stride), np.float32)
        kernel[:, :channels] = taps
        head = np.zeros(16, np.float32)
        head[0] = params[0]
        return np.concatenate([head, kernel.ravel()])


@dataclasses.dataclass(frozen=True, eq=False)
class ConvSpec:
    """act(conv(x * scale) + bias + residual), skipped by blocks.

    Attributes:
      kernel: `(kh, kw, Ci / groups, Co)`.
      bias: `(Co,)` or None.
      name: of its mask.
      strides: rows, columns.
      padding: (low, high) of rows, columns; not negative.
      dilation: rows, columns.
      groups: of channels.
      act: activation, or its name.
      policy: one of the schema's `Policy`.
      gate: of its blocks.
      winograd: F(2x2, 3x3) where the geometry allows; None as the builder says.
    """

    kernel: np.ndarray
    bias: np.ndarray | None = None
    name: str = ""
    strides: tuple[int, int] = (1, 1)
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    act: Activation | str = "none"
    policy: str = "previous"
    gate: GateSpec = dataclasses.field(default_factory=GateSpec)
    winograd: bool | None = None

    def __post_init__(self) -> None:
        schema.value("Policy", self.policy)
        if min(self.padding[0][0], self.padding[1][0]) < 0:
            raise ValueError(
                f"`padding` (={self.padding}) must not be negative; slice the input instead."
            )
        if self.policy == "accumulate" and self.gate.linear:
            raise ValueError(
                f"`gate` (={self.gate.kind!r}) must be a norm to accumulate; use policy "
                "'closed_loop'."
            )

    @property
    def window(self) -> tuple[int, int]:
        """Rows and columns of the kernel."""
        return self.kernel.shape[0], self.kernel.shape[1]

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns that one output sees."""
        (kh, kw), (dh, dw) = self.window, self.dilation
        return (kh - 1) * dh + 1, (kw - 1) * dw + 1

    def out_size(self, h: int, w: int) -> tuple[int, int]:
        """Rows and columns of the output."""
        rows, cols = (
            (n + sum(pads) - extent) // stride + 1
            for n, pads, extent, stride in zip(
                (h, w), self.padding, self.extent, self.strides, strict=True
            )
        )
        return rows, cols

    @property
    def pointwise(self) -> bool:
        """Whether every output sees one position, and every position is seen once."""
        padded = any(p for pair in self.padding for p in pair)
        return self.window == self.strides == (1, 1) and self.groups == 1 and not padded

    def algorithm(self, cs: int, cs_out: int, winograd: bool) -> str:
        """Which kernel computes it, by the channels of stored pixels."""
        ci, co = self.kernel.shape[2:]
        if self.groups > 1:
            depthwise = ci == 1 and co == self.groups and cs == cs_out
            return "depthwise" if depthwise else "grouped"
        plain = self.window == (3, 3) and self.strides == self.dilation == (1, 1)
        allowed = winograd if self.winograd is None else self.winograd
        # Winograd's weights are 16/9 as many: with many channels, memory would set the pace.
        fits = plain and cs % 16 == 0 and ci >= 16 and ci * co <= 128 * 128
        return "winograd" if fits and allowed else "direct"

    def packed(self, algorithm: str, cs_out: int) -> np.ndarray:
        """The kernel in the order that the algorithm reads it."""
        kernel = np.asarray(self.kernel, np.float32)
        match algorithm:
            case "winograd":
                return packing.pack_winograd(kernel)
            case "depthwise":
                return packing.pack_depthwise(kernel, cs_out)
            case "grouped":
                return packing.pack_grouped(kernel, self.groups)
        return packing.pack_direct(kernel)
