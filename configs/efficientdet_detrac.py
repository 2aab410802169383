"""The paper's detection experiment: EfficientDet with Gumbel gates on UA-DETRAC.

Source: Habibian et al., CVPR 2021, section 4.1 and Figure 4: SGD with momentum 0.9, weight decay
4e-5, learning rate .01 divided by 10 at epoch 3 of 4, batches of 4 clips of T = 4 frames, beta .01,
random flips, COCO initialisation. `configs/efficientdet_detrac.py:d2` takes D2; D0 to D3 are the
paper's, `d4` to `d7` work alike. Batch norm sees the whole batch however many devices share it:
under `jit` the statistics of a batch spread over devices are those of all of it.

Data: UA-DETRAC in `data/detrac` (or `--config.data.root=DIR`), in the folders it is distributed in,
or what `python -m skipconv_jax.data.prepare ua_detrac` made of them.

Expected (the paper's; not reproduced here: the data set was not at hand): D3 62.3 AP at 22.06 GMAC,
62.6 AP at 6.36 GMAC with Skip-Conv; 3.3 to 3.5 times fewer for every size. The dense cost of one
class is 22.43 GMAC here, 2 % more than the paper prints.

Where the paper's text is open: AP tells no vehicle types apart and drops what ignored regions
cover; gates sit per separable pair, at its 1x1 convolution, depthwise convolutions fire exactly
where their input changed (free), squeeze-and-excitation stays dense; with a gate everywhere D3's
6.36 GMAC cannot be reached, because a gate on a depthwise convolution costs as much as it does.
Clip-length 4 holds at test, too (`eval.reset_every`).

`--config.init_from=tf_efficientdet_d0.pth` starts from a public COCO checkpoint (`.pth` or
`.safetensors` of the `tf_efficientdet_d*` family); without it training starts from random weights,
for which 4 epochs are far too few.

Time: meant for several GPUs; not measured.

    python train.py --config configs/efficientdet_detrac.py:d0 --config.init_from=CHECKPOINT
    python eval.py --config configs/efficientdet_detrac.py:d0
"""

from ml_collections import ConfigDict

from skipconv_jax import config as configs
from skipconv_jax.models.efficientdet import SCALES


def get_config(arg: str = "d0") -> ConfigDict:
    """The configuration of the scale `arg`: 'd0' to 'd7'."""
    if arg not in SCALES:
        raise ValueError(
            f"`arg` (={arg!r}) must be one of {', '.join(SCALES)}, as in "
            "configs/efficientdet_detrac.py:d0"
        )
    config = configs.base("detection")
    config.input.update({"height": SCALES[arg].size, "width": SCALES[arg].size})
    config.model = ConfigDict({"name": "efficientdet", "scale": arg, "classes": 1})
    config.data.root = "data/detrac"
    config.data.fetch = (
        "Fetch DETRAC-train-data.zip, DETRAC-test-data.zip and both DETRAC-*-Annotations-XML.zip "
        "from UA-DETRAC's page (https://detrac-db.rit.albany.edu) and unpack them there. To run "
        "without it: `python train.py --config configs/efficientdet_synthetic.py`."
    )
    recipe = {
        "epochs": 4,
        "batch": 4,
        "clip_length": 4,
        "lr": 0.01,
        "schedule": "steps",
        "milestones": (0.75,),
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 4e-5,
        "clip_norm": 10.0,
    }
    config.dense.update(recipe)
    config.gated.update({**recipe, "beta": 0.01, "batch_norm": "train", "gate_lr_scale": 10.0})
    config.flow.update({**recipe, "clip_length": 10, "batch": 2})
    config.skip.gate = ConfigDict({"name": "gumbel", "block": 1, "bias_init": 1.65})
    exact = {"name": "input_norm", "threshold": 0.0, "block": 1}
    config.skip.rules = (("*/se/*", None), ("*conv_dw*", exact))
    config.eval.update({"batch": 4, "reset_every": 4, "drop_ignored": True})
    config.checkpoint_every = 500
    return config
