"""TSN with a small ResNet on synthetic clips: what the figure does, on any machine.

Source: the recipe of Habibian et al., CVPR 2021, supplement, section 6, at the scale of two CPU
cores. Four actions (squat, stand, walk, wave), which overlap: everyone stands still at times.

    python train.py --config configs/tsn_synthetic.py
    python eval.py --config configs/tsn_synthetic.py

`python -m paper.table5` does both for several seeds.
"""

from ml_collections import ConfigDict

from skipconv_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    """The configuration; `arg` is not used."""
    del arg
    config = configs.base("classification")
    config.data.root = "data/synthetic"
    config.data.short_side = 104
    config.data.cache = True
    config.data.fetch = (
        "Write it with `python -m skipconv_jax.data.synthetic_pose --out data/synthetic`."
    )
    config.input.update({"height": 96, "width": 96})
    config.model = ConfigDict(
        {
            "name": "resnet",
            "depths": (1, 1, 1, 1),
            "bottleneck": False,
            "classes": 4,
            "width": 16,
        }
    )
    config.dense.update(
        {"steps": 500, "batch": 16, "clip_length": 3, "lr": 2e-3, "schedule": "cosine"}
    )
    config.gated.update(
        {
            "steps": 200,
            "batch": 4,
            "clip_length": 6,
            "lr": 5e-4,
            "schedule": "cosine",
            "beta": 3e-2,
            "gate_lr_scale": 20.0,
        }
    )
    config.skip.gate = ConfigDict({"name": "gumbel", "block": 2, "bias_init": 0.5})
    config.eval.segments = (25, 6)
    return config
