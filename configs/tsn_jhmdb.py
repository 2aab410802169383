"""The paper's classification experiment: TSN with ResNet-101 on JHMDB, skipped between segments.

Source: Habibian et al., CVPR 2021, supplement, section 6 and Table 5; Wang et al., ECCV 2016.
Split 1 of the full data set, RGB, 21 actions; frames resized to 256, centre crop 224, top-1 of the
mean logits of 25 or 6 segments spread over the video.

Data: JHMDB in `data/jhmdb` (or `--config.data.root=DIR`): Rename_Images, joint_positions,
puppet_mask and splits.

Expected (the paper's; not reproduced here: the data set was not at hand). GMAC per video:
    TSN-25 55.49 % at 194.98, with Skip-Conv 54.77 % at 41.02
    TSN-6  53.84 % at  46.80, with Skip-Conv 53.77 % at 35.83
The dense costs are exact: 25 and 6 times 7.7994 GMAC.

Where the paper is silent: training takes 3 segments a video for the dense network and 6 for the
gated one, cross-entropy per frame, random crops and flips; the dense phase starts from
`--config.init_from` (a torchvision ResNet-101 checkpoint, `fc` replaced) or from random weights.

Time: meant for a GPU; not measured.

    python train.py --config configs/tsn_jhmdb.py
    python eval.py --config configs/tsn_jhmdb.py
"""

from ml_collections import ConfigDict

from skipconv_jax import config as configs


def get_config(arg: str = "1") -> ConfigDict:
    """The configuration of split `arg`."""
    config = configs.base("classification")
    config.data.update({"root": "data/jhmdb", "split": int(arg), "subset": "full"})
    config.data.short_side = 256
    config.data.fetch = (
        "Fetch Rename_Images, joint_positions, puppet_mask and splits from JHMDB's page "
        "(http://jhmdb.is.tue.mpg.de) and unpack them there. To run without it: "
        "`python -m paper.table5`."
    )
    config.input.update({"height": 224, "width": 224})
    config.model = ConfigDict({"name": "resnet", "depths": (3, 4, 23, 3), "classes": 21})
    config.dense.update({"epochs": 80, "batch": 16, "clip_length": 3, "lr": 1e-4})
    config.gated.update({"epochs": 40, "batch": 4, "clip_length": 6, "lr": 1e-4, "beta": 1e-2})
    config.gated.gate_lr_scale = 10.0
    config.skip.gate = ConfigDict({"name": "gumbel", "block": 1, "bias_init": 1.65})
    config.eval.segments = (25, 6)
    config.eval.batch = 4
    return config
