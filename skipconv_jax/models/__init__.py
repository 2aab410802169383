"""Networks in plain Flax with no word of skipping in them, and checkpoint converters."""

from skipconv_jax.models.hrnet import HRNet, hrnet_small, hrnet_w32, hrnet_w48
from skipconv_jax.models.initialize import init_variables

__all__ = ["HRNet", "hrnet_small", "hrnet_w32", "hrnet_w48", "init_variables"]
