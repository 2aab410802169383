"""How a trained network sees a frame and what its outputs mean: pre- and post-processing by name.

A preset is data and two pure functions; each has a small file here. One of your own is any object
`module:object` with the same fields, `--preset my_presets:NANODET`.
"""

from skipconv_jax.presets.base import Boxes, Preset, preset
from skipconv_jax.presets.fastestdet import FASTESTDET
from skipconv_jax.presets.yolox import YOLOX

PRESETS = {"fastestdet": FASTESTDET, "yolox": YOLOX}

__all__ = ["FASTESTDET", "PRESETS", "YOLOX", "Boxes", "Preset", "preset"]
