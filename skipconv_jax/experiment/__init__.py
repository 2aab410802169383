"""What a configuration stands for: network, task, data, and the phases of training.

`build(config)` makes the `Experiment` that every command takes; a task adds one file here.
"""

from ml_collections import ConfigDict

from skipconv_jax.experiment.base import DENSE, GATED, Experiment, Scorer
from skipconv_jax.experiment.classification import ActionExperiment
from skipconv_jax.experiment.detection import DetectionExperiment
from skipconv_jax.experiment.pose import PoseExperiment
from skipconv_jax.models import EfficientDet, HRNet, ResNet, efficientdet
from skipconv_jax.tasks.classification import ClassificationTask
from skipconv_jax.tasks.detection import DetectionTask
from skipconv_jax.tasks.pose import PoseTask

__all__ = ["DENSE", "GATED", "Experiment", "Scorer", "build"]

_MODELS = {"pose": "hrnet", "detection": "efficientdet", "classification": "resnet"}


def build(config: ConfigDict) -> Experiment:
    """The experiment of a configuration.

    Raises:
      ValueError: an unknown task, a model that is not the task's, or fields it does not have.
    """
    if config.task not in _MODELS:
        raise ValueError(f"`config.task` (={config.task!r}) must be one of {sorted(_MODELS)}.")
    settings = dict(config.model)
    name = settings.pop("name")
    if name != _MODELS[config.task]:
        raise ValueError(
            f"`config.model.name` (={name!r}) must be {_MODELS[config.task]!r} for the task "
            f"{config.task!r}."
        )
    try:
        if config.task == "pose":
            return PoseExperiment(config, HRNet(**settings), PoseTask(sigma=config.sigma))
        if config.task == "classification":
            model = ResNet(**settings)
            return ActionExperiment(config, model, ClassificationTask(model.classes))
        scale = settings.pop("scale", None)
        detector = efficientdet(scale, **settings) if scale else EfficientDet(**settings)
        size = (config.input.height, config.input.width)
        task = DetectionTask(size, detector.levels, detector.anchor_scale, **config.detection)
        return DetectionExperiment(config, detector, task)
    except TypeError as error:
        raise ValueError(
            f"`config.model` (={settings}) must hold fields of {name!r}: {error}."
        ) from error
