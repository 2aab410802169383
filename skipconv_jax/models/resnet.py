"""ResNet for classification, with the stride of a bottleneck in its 3x3 convolution.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, in torchvision's
    layout and names:
`layer1/0/conv1/kernel` here is its `layer1.0.conv1.weight`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipconv_jax.models.layers import (
    BasicBlock,
    Bottleneck,
    Chain,
    Dtype,
    Normal,
    batch_norm,
    conv,
)


class ResNet(nn.Module):
    """ResNet: images (B, H, W, 3) to logits (B, classes), float32.

    Attributes:
        depths: residual blocks in each of the stages at strides 4, 8, 16, ...; e.g. (3, 4, 23, 3).
        bottleneck: whether blocks are 1x1-3x3-1x1 with 4 times the channels at their ends, or two
            3x3.
        classes: logits to predict.
        width: channels of the stem and of the first stage's 3x3 convolutions; each later stage
            doubles them.
        dtype: of the computation (`jnp.bfloat16`, or None for the parameters' own); parameters stay
            float32.

    Raises:
        ValueError: an attribute below 1, or (when called) an input that is no batch of images.
    """

    depths: tuple[int, ...] = (3, 4, 23, 3)
    bottleneck: bool = True
    classes: int = 1000
    width: int = 64
    dtype: Dtype = None

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 1:
            raise ValueError(
                f"`depths` (={self.depths}) must give every stage at least 1 block; use e.g. (2, "
                "2, 2, 2)"
            )
        for name in ("classes", "width"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"`{name}` (={value}) must be at least 1; use e.g. {name}=16")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits of normalised frames `x` (B, H, W, 3); `train` uses the statistics of `x`."""
        if x.ndim != 4:
            raise ValueError(
                f"`x` (shape {x.shape}) must be (B, H, W, C); use x[None] for one image"
            )
        x = conv(self.width, 7, stride=2, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(batch_norm(x, train=train, name="bn1"))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        block = Bottleneck if self.bottleneck else BasicBlock
        for i, depth in enumerate(self.depths):
            stride = 1 if i == 0 else 2
            chain = Chain(block, depth, self.width * 2**i, stride, self.dtype, name=f"layer{i + 1}")
            x = chain(x, train)
        pooled = jnp.mean(x, axis=(1, 2))
        head = nn.Dense(self.classes, dtype=self.dtype, kernel_init=Normal(0.01), name="fc")
        return head(pooled).astype(jnp.float32)


def resnet18(classes: int = 1000, dtype: Dtype = None) -> ResNet:
    """ResNet-18: 11.7 M parameters, 1.81 GMAC of convolutions at 224x224."""
    return ResNet((2, 2, 2, 2), bottleneck=False, classes=classes, dtype=dtype)


def resnet50(classes: int = 1000, dtype: Dtype = None) -> ResNet:
    """ResNet-50: 25.6 M parameters, 4.09 GMAC of convolutions at 224x224."""
    return ResNet((3, 4, 6, 3), classes=classes, dtype=dtype)


def resnet101(classes: int = 1000, dtype: Dtype = None) -> ResNet:
    """ResNet-101: 44.5 M parameters, 7.80 GMAC of convolutions at 224x224."""
    return ResNet((3, 4, 23, 3), classes=classes, dtype=dtype)
