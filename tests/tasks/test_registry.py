"""Tasks and networks are found by name: folders of the package, and anybody's `module:object`."""

import sys

import jax
import numpy as np
import pytest

from skipconv_jax import config as configs
from skipconv_jax import tasks
from skipconv_jax.commands.common import load_weights
from skipconv_jax.commands.evaluate import evaluate_dense, evaluate_skipped, report
from skipconv_jax.commands.train import train
from skipconv_jax.tasks import registry

OWN = '''
"""A fourth task: how bright a frame is, by a network of bare JAX."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

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


class Loss:
    def losses(self, outputs, targets):
        error = outputs.mean((-3, -2, -1)) - targets["brightness"]
        return {"square": jnp.mean(error * error)}


class Batches:
    def __init__(self, shape, seed):
        self.shape, self.seed, self.drawn = shape, seed, 0

    def __iter__(self): return self

    def __next__(self):
        self.drawn += 1
        draw = np.random.default_rng((self.seed, self.drawn))
        frames = draw.integers(0, 255, self.shape, np.uint8)
        return {"frames": frames, "brightness": (frames.mean((2, 3, 4)) / 255).astype(np.float32)}

    def get_state(self): return {"drawn": self.drawn}
    def set_state(self, state): self.drawn = state["drawn"]


class Scorer:
    def __init__(self): self.errors = []

    def update(self, seen, batch):
        self.errors += np.abs(np.asarray(seen) - batch["brightness"])[batch["valid"]].tolist()

    def result(self): return {"error": float(np.mean(self.errors))}


class BrightnessExperiment(Experiment):
    figures = (("error", "mean error"),)
    head = ()

    def clips(self, part): return [0]
    def first(self, clips, count): return clips[: count or None]
    def steps_per_epoch(self, clips, recipe): return 1

    def train_batches(self, clips, recipe, seed):
        return Batches((recipe.batch, recipe.clip_length, *self.size, 3), seed)

    def test_batches(self, clips, length):
        batch = next(Batches((self.config.eval.batch, length, *self.size, 3), 9))
        yield batch | {"valid": np.ones(batch["brightness"].shape, bool)}

    def read(self, outputs): return outputs.mean((-3, -2, -1))
    def scorer(self): return Scorer()
    def view(self, box, min_score): raise NotImplementedError


def build(config):
    return BrightnessExperiment(config, make_model(config, {"brightness": Brightness}), Loss())


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
    assert registry.names() == ["classification", "detection", "given", "pose"]


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


def test_a_task_of_one_s_own_is_trained_and_evaluated(own, tmp_path):
    config = _config("own_task:build", {"name": "brightness", "width": 2})
    config.dense.update({"steps": 2, "batch": 2, "clip_length": 2})
    config.gated.update({"steps": 1, "batch": 2, "clip_length": 2})
    config.eval.update({"batch": 2, "reset_every": 3})
    with jax.numpy_dtype_promotion("standard"):
        train(config, tmp_path)
        experiment = tasks.build(config)
        _, dense = load_weights(experiment, tmp_path / "dense")
        plain = evaluate_dense(experiment, dense["model"], [0], "dense")
        always = tasks.build(configs.set_gate(config, "always", None, 2))
        exact = evaluate_skipped(always, dense, [0], "always")
    assert plain.frames == exact.frames == 6
    assert exact.scores == pytest.approx(plain.scores, rel=1e-5)
    assert exact.gmac == pytest.approx(plain.gmac)
    assert "mean error" in report(experiment, [plain, exact])


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        (
            "segmentation",
            "hrnet",
            r"must be one of \['classification', 'detection', 'given', 'pose'\]",
        ),
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
