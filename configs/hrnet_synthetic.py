"""A small HRNet on synthetic clips of an articulated figure: the demo, on any machine.

Source: the recipe of Habibian et al., CVPR 2021, section 4.2, at the scale of two CPU cores: 350
dense steps of 32 images, then 200 gated steps of 8 clips of 4 frames. What differs from the paper's
recipe: cosine schedule, gates start at logit 0 and learn 20 times faster (200 steps, not 100
epochs), beta 8e-4.

Data: `make demo` writes it to `data/synthetic`.

Reached on 1248 held-out frames, a reference frame every 8: dense 99.68 PCK@.2 at 0.1159 GMAC;
skipped 98.89 at 0.0290 GMAC (4.00x), 0.0335 with its gates (3.47x).

Time: the dense and the gated phase took 8.3 minutes of CPU time on two shared cores (4.2 on each).

    python train.py --config configs/hrnet_synthetic.py
    python eval.py --config configs/hrnet_synthetic.py
"""

from ml_collections import ConfigDict

from skipconv_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    """The configuration; `arg` is not used."""
    del arg
    config = configs.base("pose")
    config.input.update({"height": 128, "width": 128})
    config.model = ConfigDict(
        {
            "name": "hrnet",
            "width": 16,
            "joints": 15,
            "modules": (1, 1, 1),
            "blocks": 2,
            "stem": 16,
            "layer1_blocks": 1,
        }
    )
    config.sigma = 1.5
    config.data.root = "data/synthetic"
    config.data.fetch = (
        "Write it with `python -m skipconv_jax.data.synthetic_pose --out data/synthetic --clips "
        "200 --frames 24 --height 180 --width 240 --seed 0`; it takes half a minute."
    )
    config.data.cache = True
    config.data.augmentation = {"scale": (0.6, 1.3), "rotation": 20.0, "flip": 0.0}
    config.dense.update(
        {
            "steps": 350,
            "batch": 16,
            "clip_length": 2,
            "lr": 3e-3,
            "schedule": "cosine",
            "warmup": 20,
        }
    )
    config.gated.update(
        {
            "steps": 200,
            "batch": 8,
            "clip_length": 4,
            "lr": 1e-3,
            "schedule": "cosine",
            "gate_lr_scale": 20.0,
            "beta": 8e-4,
        }
    )
    config.skip.gate = ConfigDict({"name": "gumbel", "block": 4, "bias_init": 0.0})
    config.log_every = 10
    config.checkpoint_every = 250
    return config
