"""Skip-Convolutions in JAX: convolutional networks on video that compute only what changed."""

from skipconv_jax.transform import Rule, SkipNet, skip

__all__ = ["Rule", "SkipNet", "skip"]
