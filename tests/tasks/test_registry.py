"""Tasks and networks are found by name: folders of the package, and anybody's `module:object`."""

import sys

import jax
import numpy as np
import pytest

from skipconv_jax import config as configs
from skipconv_jax import tasks
from skipconv_jax.tasks import registry

OWN = '''
"""A fourth task: how bright a frame is, by a network of bare JAX."""

import dataclasses

import jax
import jax.numpy as jnp

from skipconv_jax.tasks import Experiment
from skipconv_jax.tasks.registry import make_model


@dataclasses.dataclass(frozen=True)
class Brightness:
    """Anything with Flax's `init` and `apply` is a network."""

    width: int

    def init(self, key, x):
        return {"params": {"kernel": jax.random.normal(key, (3, 3, 3, self.width))}}

    def apply(self, variables, x):
        kernel = variables["params"]["kernel"]
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


class BrightnessExperiment(Experiment):
    figures = (("mean", "mean"),)
    head = ()

    def clips(self, part): return []
    def first(self, clips, count): return clips
    def steps_per_epoch(self, clips, recipe): return 1
    def train_batches(self, clips, recipe, seed): return iter(())
    def test_batches(self, clips, length): return iter(())
    def read(self, outputs): return outputs.mean((1, 2, 3))
    def scorer(self): raise NotImplementedError
    def view(self, box, min_score): raise NotImplementedError


def build(config):
    return BrightnessExperiment(config, make_model(config, {"brightness": Brightness}), None)


def nothing(config):
    return 3
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_task.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_task", None)


def _config(task, model):
    config = configs.base()
    config.task = task
    config.input.update({"height": 8, "width": 12})
    with config.unlocked():
        config.model = model
    config.skip.gate = {"name": "input_norm", "threshold": 0.1, "block": 2}
    return config


def test_every_folder_is_a_task():
    assert registry.names() == ["classification", "detection", "pose"]


@pytest.mark.parametrize("name", ["brightness", "own_task:Brightness"])
def test_a_task_of_one_s_own_is_skipped_and_counted(own, name):
    experiment = tasks.build(_config("own_task:build", {"name": name, "width": 5}))
    assert experiment.table().macs == 8 * 12 * 9 * 3 * 5
    net, variables = experiment.net(), experiment.variables()
    frame = np.zeros((1, 8, 12, 3), np.uint8)
    params, state = net.init(variables, frame)
    _, state = jax.jit(net.apply)(params, state, frame)
    y, state = jax.jit(net.apply)(params, state, frame)
    assert experiment.read(y).shape == (1,)
    with pytest.raises(ValueError, match=r"must be one of \('dense', 'gated'\)"):
        experiment.phase("flow", None)
    with pytest.raises(ValueError, match="which has none"):
        experiment.baseline("interleaved", 2)


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        ("segmentation", "hrnet", r"must be one of \['classification', 'detection', 'pose'\]"),
        ("own_task:missing", "x", r"`config.task` .* must be `module:object` that can be imported"),
        ("no_such_module:build", "x", "No module named 'no_such_module'"),
        ("own_task:nothing", "x", "must name a function that returns a skipconv_jax.tasks.Exp"),
        ("own_task:build", "vgg", r"`config.model.name` \(='vgg'\) must be one of \['brightness'"),
        ("pose", "own_task:Nothing", "`config.model.name` .* must be `module:object`"),
        ("own_task:build", "brightness", "must hold fields of 'brightness'"),
    ],
)
def test_wrong_names_are_named(own, task, model, message):
    with pytest.raises(ValueError, match=message):
        tasks.build(_config(task, {"name": model}))
