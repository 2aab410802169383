"""How a trained network sees a frame and what its outputs mean: pre- and post-processing by name.

A preset is data and two pure functions; each has a small file here. One of your own is any object
`module:object` with the same fields, `--preset my_presets:NANODET`.
"""

from skipconv_jax.presets.base import Boxes, Pixels, Preset, preset
from skipconv_jax.presets.fastestdet import FASTESTDET
from skipconv_jax.presets.pixels import IMAGENET, SYMMETRIC, UNIT
from skipconv_jax.presets.yolox import YOLOX

PRESETS: dict[str, Preset | Pixels] = {
    "fastestdet": FASTESTDET,
    "imagenet": IMAGENET,
    "symmetric": SYMMETRIC,
    "unit": UNIT,
    "yolox": YOLOX,
}

__all__ = [
    "FASTESTDET",
    "IMAGENET",
    "PRESETS",
    "SYMMETRIC",
    "UNIT",
    "YOLOX",
    "Boxes",
    "Pixels",
    "Preset",
    "preset",
]
