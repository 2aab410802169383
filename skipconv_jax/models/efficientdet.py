"""EfficientDet: EfficientNet features, a bidirectional pyramid, heads shared over its levels.

Source: Tan, Pang and Le, "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020, in the
    names of the
public PyTorch checkpoints `tf_efficientdet_d*`: `class_net/predict/conv_pw/kernel` here is their
`class_net.predict.conv_pw.weight`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipconv_jax.models.efficientnet import EPSILON, EfficientNet
from skipconv_jax.models.layers import (
    Dtype,
    Normal,
    Scope,
    batch_norm,
    conv,
    under,
    upsample_nearest,
)

MIN_LEVEL = 3  # the finest level has stride 2^3
ANCHORS = 9  # per position: 3 scales x 3 aspect ratios
_MOMENTUM = 0.01  # of batch norms outside the backbone
_PRIOR = 0.01  # initial probability of every class, so that the focal loss starts small

# Initialisers outside the backbone, as fields of `Normal`.
_GLOROT: Mapping[str, Any] = MappingProxyType({"gain": 1.0, "fan": "avg"})
_LECUN: Mapping[str, Any] = MappingProxyType({"gain": 1.0, "fan": "in"})


@dataclass(frozen=True)
class Scale:
    """A row of the paper's Table 1, and the multipliers of its EfficientNet."""

    size: int
    features: int
    cells: int
    head_depth: int
    width: float
    depth: float
    weighted: bool = True
    anchor_scale: float = 4.0


SCALES = {
    "d0": Scale(512, 64, 3, 3, 1.0, 1.0),
    "d1": Scale(640, 88, 4, 3, 1.0, 1.1),
    "d2": Scale(768, 112, 5, 3, 1.1, 1.2),
    "d3": Scale(896, 160, 6, 4, 1.2, 1.4),
    "d4": Scale(1024, 224, 7, 4, 1.4, 1.8),
    "d5": Scale(1280, 288, 7, 4, 1.6, 2.2),
    # From here on the features are summed without weights, for stable training.
    "d6": Scale(1280, 384, 8, 5, 1.8, 2.6, weighted=False),
    "d7": Scale(1536, 384, 8, 5, 1.8, 2.6, weighted=False, anchor_scale=5.0),
}


class EfficientDet(nn.Module):
    """EfficientDet: (B, H, W, 3) to class logits (B, N, classes) and boxes (B, N, 4), float32.

    N anchors are ordered by level, row, column and kind, as `tasks.detection.make_anchors` lists
    them; boxes are (ty, tx, th, tw) relative to their anchor. Any H and W: a level is half the one
    before, rounded up.

    Attributes:
        classes: kinds of object; each anchor has an independent logit per class, and none for the
            background.
        features: channels of the pyramid and of the heads.
        cells: bidirectional fusions in a row.
        head_depth: separable convolutions before each prediction.
        width, depth: multipliers of the EfficientNet.
        levels: of the pyramid, from stride 8 on; 5 reach stride 128.
        weighted: learn a non-negative weight per fused input (fast normalised fusion), or add them.
        anchor_scale: base size of an anchor in strides; the network does not read it, the task
            does.
        size: the side of the square input it is meant for; the network does not read it, the task
            does.
        dtype: of the computation (`jnp.bfloat16`, or None for the parameters' own); parameters stay
            float32.

    Raises:
        ValueError: an attribute below its bound, or (when called) an input that is no batch of
            images.
    """

    classes: int = 90
    features: int = 64
    cells: int = 3
    head_depth: int = 3
    width: float = 1.0
    depth: float = 1.0
    levels: int = 5
    weighted: bool = True
    anchor_scale: float = 4.0
    size: int = 512
    dtype: Dtype = None

    def __post_init__(self) -> None:
        bounds = {"classes": 1, "features": 1, "cells": 1, "head_depth": 0, "levels": 3, "size": 1}
        for name, bound in bounds.items():
            value = getattr(self, name)
            if value < bound:
                raise ValueError(
                    f"`{name}` (={value}) must be at least {bound}; use e.g. {name}={max(bound, 5)}"
                )
        super().__post_init__()

    def setup(self) -> None:
        self.backbone = EfficientNet(self.width, self.depth, self.dtype)
        self.fpn = BiFPN(self.features, self.cells, self.levels, self.weighted, self.dtype)
        kw: dict[str, Any] = {"depth": self.head_depth, "dtype": self.dtype}
        logit = -math.log((1 - _PRIOR) / _PRIOR)
        self.class_net = Head(self.classes, bias=logit, **kw)
        self.box_net = Head(4, **kw)

    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Logits and boxes of normalised frames `x`; `train` uses the statistics of `x`."""
        return self.detect(self.extract(x, train), train)

    def extract(self, x: jax.Array, train: bool = False) -> list[jax.Array]:
        """First half: the backbone's features at strides 8, 16 and 32, which the pyramid reads.

        For `model.apply(variables, x, method="extract")` with the variables of the whole network.
        """
        if x.ndim != 4:
            raise ValueError(
                f"`x` (shape {x.shape}) must be (B, H, W, C); use x[None] for one image"
            )
        levels: list[jax.Array] = self.backbone(x, train)
        return levels

    def detect(
        self, levels: Sequence[jax.Array], train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Second half: pyramid and heads on the features `extract` gives, or on others like them.

        For `model.apply(variables, levels, method="detect")`.
        """
        pyramid = self.fpn(levels, train)
        return self.class_net(pyramid, train), self.box_net(pyramid, train)


def efficientdet(name: str = "d0", classes: int = 90, dtype: Dtype = None) -> EfficientDet:
    """EfficientDet-D0 to D7 by name: 2.5, 6.0, 10.8, 24.6, ... GMAC at their sizes with 90 classes.

    Raises:
        ValueError: an unknown name.
    """
    if name not in SCALES:
        raise ValueError(f"`name` (={name!r}) must be one of {', '.join(SCALES)}; use 'd0'")
    scale = SCALES[name]
    return EfficientDet(
        classes,
        scale.features,
        scale.cells,
        scale.head_depth,
        scale.width,
        scale.depth,
        weighted=scale.weighted,
        anchor_scale=scale.anchor_scale,
        size=scale.size,
        dtype=dtype,
    )


class SeparableConv(nn.Module):
    """Depthwise 3x3, 1x1 with bias, batch norm if asked: (B, H, W, C) -> (B, H, W, features)."""

    features: int
    initialiser: Mapping[str, Any]
    bias: float = 0.0
    norm: bool = False
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = x.shape[-1]
        depthwise = Normal(groups=channels, **self.initialiser)
        kw: dict[str, Any] = {"same": True, "dtype": self.dtype}
        x = conv(channels, 3, groups=channels, kernel_init=depthwise, name="conv_dw", **kw)(x)
        x = conv(
            self.features,
            1,
            bias=True,
            kernel_init=Normal(**self.initialiser),
            bias_init=nn.initializers.constant(self.bias),
            name="conv_pw",
            **kw,
        )(x)
        return _norm(x, "bn", train) if self.norm else x


class BiFPN(nn.Module):
    """Bidirectional pyramid: `cells` passes from coarse to fine and back.

    Takes the backbone's features, gives (B, H_l, W_l, features) for every one of `levels`.
    """

    features: int
    cells: int
    levels: int = 5
    weighted: bool = True
    dtype: Dtype = None

    @nn.compact
    def __call__(self, inputs: Sequence[jax.Array], train: bool = False) -> list[jax.Array]:
        levels = under("resample", self._extend, inputs, train)
        return under("cell", self._repeat, levels, train)

    @nn.nowrap
    def _extend(self, inputs: Sequence[jax.Array], train: bool) -> list[jax.Array]:
        """Halves the coarsest input until there are enough levels."""
        levels = list(inputs)
        for level in range(len(inputs), self.levels):
            x = levels[-1]
            if x.shape[-1] != self.features:
                x = under(f"{level}/conv", project, x, self.features, train, self.dtype)
            levels.append(nn.max_pool(x, (3, 3), (2, 2), "SAME"))
        return levels

    @nn.nowrap
    def _repeat(self, levels: list[jax.Array], train: bool) -> list[jax.Array]:
        for index in range(self.cells):
            levels = under(f"{index}/fnode", self._fuse, levels, train)
        return levels

    @nn.nowrap
    def _fuse(self, levels: list[jax.Array], train: bool) -> list[jax.Array]:
        values = list(levels)
        for index, (level, offsets) in enumerate(fusion_plan(len(levels))):
            node = FusionNode(self.features, offsets, self.weighted, self.dtype, name=str(index))
            size = (levels[level].shape[1], levels[level].shape[2])
            values.append(node([values[offset] for offset in offsets], size, train))
        return values[-len(levels) :]


def fusion_plan(levels: int) -> list[tuple[int, tuple[int, ...]]]:
    """The nodes of a cell in order: each one's level, and what it sums by offset.

    Offsets count the cell's inputs from fine to coarse, then the nodes before; the public
    checkpoints name an edge by them. The last `levels` nodes are the cell's outputs.
    """
    offsets = [[level] for level in range(levels)]
    plan: list[tuple[int, tuple[int, ...]]] = []

    def add(level: int, inputs: tuple[int, ...]) -> None:
        offsets[level].append(levels + len(plan))
        plan.append((level, inputs))

    for level in reversed(range(levels - 1)):
        add(level, (offsets[level][-1], offsets[level + 1][-1]))
    for level in range(1, levels):
        add(level, (*offsets[level], offsets[level - 1][-1]))
    return plan


class FusionNode(nn.Module):
    """BN(separable(swish(sum_i w_i x_i))), every x_i brought to one size and channel count.

    w_i = relu(e_i) / (sum_j relu(e_j) + 1e-4) with learned e (fast normalised fusion), or 1.
    """

    features: int
    offsets: tuple[int, ...]
    weighted: bool = True
    dtype: Dtype = None

    @nn.compact
    def __call__(
        self, inputs: Sequence[jax.Array], size: tuple[int, int], train: bool = False
    ) -> jax.Array:
        combine = _Combine(self.features, self.offsets, self.weighted, self.dtype, name="combine")
        x = nn.silu(combine(inputs, size, train))
        return under("after_combine", self._refine, x, train)

    @nn.nowrap
    def _refine(self, x: jax.Array, train: bool) -> jax.Array:
        conv = SeparableConv(self.features, _GLOROT, norm=True, dtype=self.dtype, name="conv")
        return conv(x, train)


class _Combine(nn.Module):
    features: int
    offsets: tuple[int, ...]
    weighted: bool
    dtype: Dtype = None
    edge_weights_init: Callable[..., jax.Array] = nn.initializers.ones

    @nn.compact
    def __call__(
        self, inputs: Sequence[jax.Array], size: tuple[int, int], train: bool
    ) -> jax.Array:
        terms = under("resample", self._resample, inputs, size, train)
        if self.weighted:
            edges = self.param("edge_weights", self.edge_weights_init, (len(inputs),))
            edges = nn.relu(edges)
            weights = (edges / (jnp.sum(edges) + 1e-4)).astype(terms[0].dtype)
            terms = [weights[i] * x for i, x in enumerate(terms)]
        return sum(terms[1:], terms[0])

    @nn.nowrap
    def _resample(
        self, inputs: Sequence[jax.Array], size: tuple[int, int], train: bool
    ) -> list[jax.Array]:
        terms = []
        for offset, x in zip(self.offsets, inputs, strict=True):
            if x.shape[-1] != self.features:
                x = under(f"{offset}/conv", project, x, self.features, train, self.dtype)
            terms.append(resize_level(x, size))
        return terms


class Head(nn.Module):
    """Separable convolutions shared by all levels, with batch norms of each level's own.

    From features (B, H_l, W_l, C) per level to (B, N, outputs), float32, N counting the 9 anchors
    of every position by level, row and column.
    """

    outputs: int
    depth: int
    bias: float = 0.0
    dtype: Dtype = None

    @nn.compact
    def __call__(self, pyramid: Sequence[jax.Array], train: bool = False) -> jax.Array:
        convs, norms = Scope(name="conv_rep"), Scope(name="bn_rep")
        predict = SeparableConv(
            ANCHORS * self.outputs, _LECUN, self.bias, dtype=self.dtype, name="predict"
        )
        rows = []
        for level, x in enumerate(pyramid):
            for index in range(self.depth):
                x = convs(self._conv, x, index)
                x = nn.silu(norms(under, f"{index}/{level}", _norm, x, "bn", train))
            rows.append(predict(x).reshape(x.shape[0], -1, self.outputs))
        return jnp.concatenate(rows, axis=1).astype(jnp.float32)

    @nn.nowrap
    def _conv(self, x: jax.Array, index: int) -> jax.Array:
        return SeparableConv(x.shape[-1], _LECUN, dtype=self.dtype, name=str(index))(x)


def project(x: jax.Array, features: int, train: bool, dtype: Dtype) -> jax.Array:
    """1x1 convolution `conv` to `features` channels and batch norm `bn`."""
    init = Normal(**_GLOROT)
    x = conv(features, 1, bias=True, kernel_init=init, dtype=dtype, name="conv")(x)
    return _norm(x, "bn", train)


def resize_level(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """(B, H, W, C) to the size of a neighbouring level: 3x3 max-pool of stride 2, or nearest x2.

    An odd finer level makes the coarser one half a position too large: upsampling crops that.
    """
    height, width = size
    if x.shape[1] > height or x.shape[2] > width:
        return nn.max_pool(x, (3, 3), (2, 2), "SAME")
    if x.shape[1:3] != size:
        x = upsample_nearest(x, 2)
    return x if x.shape[1:3] == size else x[:, :height, :width]


def _norm(x: jax.Array, name: str, train: bool) -> jax.Array:
    return batch_norm(x, train=train, momentum=_MOMENTUM, epsilon=EPSILON, name=name)
