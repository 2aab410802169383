"""HRNet for human pose: parallel branches at four resolutions, heatmaps at a quarter of the input.

Source: Sun et al., "Deep High-Resolution Representation Learning for Human Pose Estimation", CVPR
    2019. Modules bear
the names of the public PyTorch implementation, so `stage2/0/branches/0/0/conv1/kernel` here is its
`stage2.0.branches.0.0.conv1.weight`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipconv_jax import checks
from skipconv_jax.models.layers import (
    BasicBlock,
    Bottleneck,
    Chain,
    ConvBN,
    Dtype,
    Normal,
    batch_norm,
    conv,
    upsample_nearest,
)

STRIDE = 32  # of the coarsest branch
HEATMAP_STRIDE = 4

Branches = list[jax.Array]


class HRNet(nn.Module):
    """Pose HRNet: images (B, H, W, 3) to heatmaps (B, H/4, W/4, joints), float32.

    Stage s has s branches of width, 2 width, ... channels at strides 4, 8, ...; the head reads the
    finest.

    Attributes:
        width: channels of the finest branch (32 in w32). Branch i has width 2^i.
        joints: heatmaps to predict.
        modules: how often stages 2, 3 and 4 exchange information between branches.
        blocks: residual blocks per branch between two exchanges.
        stem: channels of the stem and of layer1's bottlenecks (layer1 ends in 4 `stem`).
        layer1_blocks: bottlenecks in layer1.
        dtype: of the computation (`jnp.bfloat16`, or None for the parameters' own); parameters stay
            float32.

    Raises:
        ValueError: an attribute below 1, or (when called) H or W that 32 does not divide.
    """

    width: int = 32
    joints: int = 17
    modules: tuple[int, int, int] = (1, 4, 3)
    blocks: int = 4
    stem: int = 64
    layer1_blocks: int = 4
    dtype: Dtype = None

    def __post_init__(self) -> None:
        for name in ("width", "joints", "blocks", "stem", "layer1_blocks"):
            checks.positive_integer(name, getattr(self, name), f"use e.g. {name}=4")
        if (
            not isinstance(self.modules, Sequence)
            or len(self.modules) != 3
            or not all(isinstance(m, int) and m >= 1 for m in self.modules)
        ):
            raise ValueError(
                f"`modules` (={self.modules}) must give stages 2, 3 and 4 at least 1 module each; "
                "use e.g. (1, 4, 3)"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Heatmaps of normalised frames `x` (B, H, W, 3); `train` uses the statistics of `x`."""
        _check_input(x)
        kw: dict[str, Any] = {"dtype": self.dtype}
        x = conv(self.stem, 3, stride=2, name="conv1", **kw)(x)
        x = nn.relu(batch_norm(x, train=train, name="bn1"))
        x = conv(self.stem, 3, stride=2, name="conv2", **kw)(x)
        x = nn.relu(batch_norm(x, train=train, name="bn2"))
        x = Chain(Bottleneck, self.layer1_blocks, self.stem, name="layer1", **kw)(x, train)

        branches = [x]
        for stage, modules in enumerate(self.modules, start=2):
            widths = tuple(self.width * 2**i for i in range(stage))
            branches = _Transition(widths, name=f"transition{stage - 1}", **kw)(branches, train)
            branches = _Stage(
                modules, self.blocks, finest_only=stage == 4, name=f"stage{stage}", **kw
            )(branches, train)

        # A small head keeps the first heatmaps near zero, where nearly all targets are.
        head = conv(self.joints, 1, bias=True, kernel_init=Normal(1e-3), name="final_layer", **kw)
        return head(branches[0]).astype(jnp.float32)


def hrnet_w32(joints: int = 17, dtype: Dtype = None) -> HRNet:
    """HRNet-w32, the paper's: 28.5 M parameters, 10.19 GMAC at 256x256 with 15 joints."""
    return HRNet(width=32, joints=joints, dtype=dtype)


def hrnet_w48(joints: int = 17, dtype: Dtype = None) -> HRNet:
    """HRNet-w48: the same depth, 1.5 times the channels."""
    return HRNet(width=48, joints=joints, dtype=dtype)


def hrnet_small(joints: int = 15, width: int = 16, dtype: Dtype = None) -> HRNet:
    """A shallow HRNet that two CPU cores train within minutes: 116 MMAC at 128x128."""
    return HRNet(
        width, joints, modules=(1, 1, 1), blocks=2, stem=width, layer1_blocks=1, dtype=dtype
    )


class _Halvings(nn.Module):
    """3x3 stride-2 convolutions: the last gives `features`, the others keep the channels."""

    count: int
    features: int
    last_relu: bool
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for k in range(self.count):
            last = k == self.count - 1
            features = self.features if last else x.shape[-1]
            relu = self.last_relu or not last
            x = ConvBN(features, 3, 2, relu, self.dtype, name=str(k))(x, train)
        return x


class _Transition(nn.Module):
    """Adapts the branches to `widths`: a 3x3 on layer1's output, a halving for a new branch."""

    widths: tuple[int, ...]
    dtype: Dtype = None

    @nn.compact
    def __call__(self, branches: Sequence[jax.Array], train: bool) -> Branches:
        outputs: Branches = []
        for i, width in enumerate(self.widths):
            if i >= len(branches):
                halvings = _Halvings(
                    i + 1 - len(branches), width, last_relu=True, dtype=self.dtype, name=str(i)
                )
                outputs.append(halvings(branches[-1], train))
            elif i == 0 and len(branches) == 1:
                outputs.append(ConvBN(width, 3, dtype=self.dtype, name=str(i))(branches[i], train))
            else:
                outputs.append(branches[i])
        return outputs


class _Stage(nn.Module):
    """High-resolution modules in a row; `finest_only` drops the coarser outputs of the last."""

    modules: int
    blocks: int
    finest_only: bool
    dtype: Dtype = None

    @nn.compact
    def __call__(self, branches: Sequence[jax.Array], train: bool) -> Branches:
        for m in range(self.modules):
            outputs = 1 if self.finest_only and m == self.modules - 1 else len(branches)
            module = _ExchangeModule(self.blocks, outputs, self.dtype, name=str(m))
            branches = module(branches, train)
        return list(branches)


class _ExchangeModule(nn.Module):
    """Residual blocks on every branch, then each output sums all branches, resized to it."""

    blocks: int
    outputs: int
    dtype: Dtype = None

    @nn.compact
    def __call__(self, branches: Sequence[jax.Array], train: bool) -> Branches:
        branches = _BranchBlocks(self.blocks, self.dtype, name="branches")(branches, train)
        return _Fuse(self.outputs, self.dtype, name="fuse_layers")(branches, train)


class _BranchBlocks(nn.Module):
    blocks: int
    dtype: Dtype = None

    @nn.compact
    def __call__(self, branches: Sequence[jax.Array], train: bool) -> Branches:
        return [
            Chain(BasicBlock, self.blocks, x.shape[-1], dtype=self.dtype, name=str(i))(x, train)
            for i, x in enumerate(branches)
        ]


class _Fuse(nn.Module):
    outputs: int
    dtype: Dtype = None

    @nn.compact
    def __call__(self, branches: Sequence[jax.Array], train: bool) -> Branches:
        return [_FuseRow(i, self.dtype, name=str(i))(branches, train) for i in range(self.outputs)]


class _FuseRow(nn.Module):
    """relu(sum_j f_ij(x_j)): 1x1 and upsampling from coarser j, halvings from finer, else x_i."""

    target: int
    dtype: Dtype = None

    @nn.compact
    def __call__(self, branches: Sequence[jax.Array], train: bool) -> jax.Array:
        i = self.target
        features = branches[i].shape[-1]
        terms = []
        for j, x in enumerate(branches):
            if j > i:
                x = ConvBN(features, 1, relu=False, dtype=self.dtype, name=str(j))(x, train)
                x = upsample_nearest(x, 2 ** (j - i))
            elif j < i:
                x = _Halvings(i - j, features, last_relu=False, dtype=self.dtype, name=str(j))(
                    x, train
                )
            terms.append(x)
        return nn.relu(sum(terms[1:], terms[0]))


def _check_input(x: jax.Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"`x` (shape {x.shape}) must be (B, H, W, C); use x[None] for one image")
    if not all(n and n % STRIDE == 0 for n in x.shape[1:3]):
        raise ValueError(
            f"`x` (shape {x.shape}) must have H and W divisible by {STRIDE}, the coarsest branch's "
            "stride; resize or pad it"
        )
