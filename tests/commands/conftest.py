"""A configuration small enough to train, evaluate and stream within a test."""

import pytest
from ml_collections import ConfigDict

from skipconv_jax import config as configs
from skipconv_jax.commands.train import train
from skipconv_jax.data.synthetic_pose import Scene, generate


def tiny_config(root) -> ConfigDict:
    config = configs.load("configs/hrnet_synthetic.py")
    config.data.root = str(root)
    config.input.update({"height": 64, "width": 64})
    config.model.update({"width": 4, "stem": 4, "blocks": 1})
    # Most layers dense: compiling is what takes the time.
    config.skip.rules = tuple((p, None) for p in ("stage[23]/*", "transition*", "layer1/*"))
    config.skip.gate.block = 2
    config.dense.update({"steps": 4, "batch": 2, "clip_length": 2, "warmup": 0})
    config.gated.update({"steps": 3, "batch": 2, "clip_length": 3})
    config.eval.update({"batch": 2, "reset_every": 4})
    config.log_every = 1
    return config


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    generate(root, 16, Scene(height=64, width=64, frames=6), seed=0, workers=1)
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data):
    """`(config, workdir)` of a run with both phases."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny_config(data)
    train(config, workdir)
    return config, workdir
