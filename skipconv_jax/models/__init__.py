"""Networks in plain Flax with no word of skipping in them, and checkpoint converters."""

from skipconv_jax.extras import required

with required():
    from skipconv_jax.models.efficientdet import EfficientDet, efficientdet
    from skipconv_jax.models.hrnet import HRNet, hrnet_small, hrnet_w32, hrnet_w48
    from skipconv_jax.models.initialize import init_variables
    from skipconv_jax.models.resnet import ResNet, resnet18, resnet50, resnet101

__all__ = [
    "EfficientDet",
    "HRNet",
    "ResNet",
    "efficientdet",
    "hrnet_small",
    "hrnet_w32",
    "hrnet_w48",
    "init_variables",
    "resnet18",
    "resnet50",
    "resnet101",
]
