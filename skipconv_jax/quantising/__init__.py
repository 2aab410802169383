"""A trained float network as a quantised one, without training.

variables, fn = quantize(fn, variables, clip)

`fn` is a pure function of a frame as before, with quantise and dequantise calls in its trace: what
reads a quantised ONNX file reads it too, and `compile_plan(..., precision="int8")` computes it in
integers.
"""

from skipconv_jax.quantising.function import QuantisedFunction
from skipconv_jax.quantising.post_training import quantize

__all__ = ["QuantisedFunction", "quantize"]
