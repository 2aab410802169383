"""ONNX operators by family; importing this registers them."""

from skipconv_jax.onnx.operators import (  # noqa: F401
    activations,
    arithmetic,
    convolutions,
    linear,
    movement,
    normalization,
    pools,
    quantized,
    reductions,
    resizing,
    shaping,
)
