"""A small EfficientDet on synthetic traffic: the paper's first experiment on any machine.

Source: the recipe of Habibian et al., CVPR 2021, section 4.1, at the scale of two CPU cores.
`small` (the default) sees 160x288 pixels, `tiny` 128x224; both are EfficientDet with narrower and
shallower parts, three pyramid levels and smaller anchors, because the vehicles are small. What
differs from the paper's recipe: Adam with a cosine schedule from random weights (1000 dense steps
of 16 frames), 120 gated steps of 2 clips of 8 frames, gates that learn 100 times faster, and the
drift-free policy `closed_loop`: under Eq. 3 vehicles that move a pixel per frame are forgotten. At
test a sequence has one reference frame.

The gates see the magnitude of the residual and start as Input-Norm gates of 0.03. With the signed
residual of the published gate, a 1x1 gate learns to fire on what arrives or on what leaves, not on
both (`paper/figure4.py` has its row). They decide for single positions, as in the paper's
detectors.

Gates sit per separable pair, at its 1x1 convolution; depthwise convolutions fire exactly where
their input changed (Input-Norm, threshold 0), which costs no multiplication, and
squeeze-and-excitation stays dense: it runs on one position.

Data: 120 sequences of 16 frames, 72 to train and 48 to test, each with a camera of its own.

Reached on 768 held-out frames (`small`): dense 37.35 AP@[.5:.95] at 0.0524 GMAC; skipped 37.68 AP
at 0.0140 GMAC, 0.0152 with its gates (3.44x). With beta 0.1: 37.49 AP at 0.0126 (4.16x).

Time: about 11 and 4 minutes for the phases on two free cores.

    python train.py --config configs/efficientdet_synthetic.py
    python eval.py --config configs/efficientdet_synthetic.py
"""

from ml_collections import ConfigDict

from skipconv_jax import config as configs

SIZES = {
    "small": ((160, 288), {"width": 0.5, "features": 32}),
    "tiny": ((128, 224), {"width": 0.35, "features": 24}),
}


def get_config(arg: str = "small") -> ConfigDict:
    """The configuration of `small` or `tiny`."""
    if arg not in SIZES:
        raise ValueError(
            f"`arg` (={arg!r}) must be one of {sorted(SIZES)}, as in "
            "configs/efficientdet_synthetic.py:tiny"
        )
    (height, width), widths = SIZES[arg]
    config = configs.base("detection")
    config.input.update({"height": height, "width": width})
    config.model = ConfigDict(
        {
            "name": "efficientdet",
            "classes": 1,
            "depth": 0.2,
            "cells": 1,
            "head_depth": 1,
            "levels": 3,
            "anchor_scale": 2.0,
            **widths,
        }
    )
    config.detection = ConfigDict({"candidates": 300, "keep": 60}, type_safe=False)
    config.data.root = "data/traffic"
    config.data.fetch = (
        "Write it with `python -m skipconv_jax.data.synthetic_traffic --out data/traffic "
        "--sequences 120 --frames 16 --height 180 --width 320 --seed 0`; it takes half a minute."
    )
    config.data.augmentation = {"flip": 0.5, "scale": (0.9, 1.4)}
    config.data.labels.update({"max_boxes": 32, "max_ignored": 2})
    config.dense.update(
        {
            "steps": 1000,
            "batch": 16,
            "clip_length": 1,
            "lr": 3e-3,
            "schedule": "cosine",
            "warmup": 30,
            "clip_norm": 10.0,
        }
    )
    config.gated.update(
        {
            "steps": 120,
            "batch": 2,
            "clip_length": 8,
            "lr": 5e-4,
            "schedule": "cosine",
            "clip_norm": 10.0,
            "gate_lr_scale": 100.0,
            "beta": 0.04,
        }
    )
    config.skip.gate = ConfigDict(
        {
            "name": "gumbel",
            "sees": "magnitude",
            "block": 1,
            "bias_init": -4.0,
            "kernel_gain": 4 / 0.03,
        }
    )
    config.skip.policy = "closed_loop"
    exact = {"name": "input_norm", "threshold": 0.0, "block": 1}
    config.skip.rules = (("*/se/*", None), ("*conv_dw*", exact))
    config.eval.update({"batch": 8, "reset_every": 16, "drop_ignored": True})
    config.log_every = 20
    config.checkpoint_every = 250
    return config
