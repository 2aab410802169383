"""Finds tasks and networks by name: folders of this package, and `module:object` of anybody's."""

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

import skipconv_jax.tasks as folders
from skipconv_jax.entries import find
from skipconv_jax.tasks.base import Experiment


def names() -> list[str]:
    """The tasks of this package: every folder of it."""
    return sorted(found.name for found in pkgutil.iter_modules(folders.__path__) if found.ispkg)


def build(config: ConfigDict) -> Experiment:
    """The experiment of a configuration.

    `config.task` is the name of a folder here, whose `experiment.build` is called with the
    configuration, or `module:function` of your own, which is called alike.

    Raises:
      ValueError: an unknown task, a model that is not the task's, fields it does not have, or a
        function that makes no experiment.
    """
    name = str(config.task)
    if ":" not in name and name not in names():
        raise ValueError(
            f"`config.task` (={name!r}) must be one of {names()}, or `module:function` of your own."
        )
    where = name if ":" in name else f"{folders.__name__}.{name}.experiment:build"
    experiment = find(where, "config.task")(config)
    if not isinstance(experiment, Experiment):
        raise ValueError(
            f"`config.task` (={name!r}) must name a function that returns a "
            f"skipconv_jax.tasks.Experiment, not a {type(experiment).__name__}."
        )
    return experiment


def make_model(config: ConfigDict, known: Mapping[str, Callable[..., Any]]) -> Any:
    """The network of `config.model`: `name`, and fields that are handed to what it names.

    Args:
      config: the configuration.
      known: networks of the task by name; `name` may also be `module:object` of your own.

    Raises:
      ValueError: an unknown name, or fields that the network does not have.
    """
    settings = dict(config.model)
    name = str(settings.pop("name"))
    if ":" not in name and name not in known:
        raise ValueError(
            f"`config.model.name` (={name!r}) must be one of {sorted(known)} for the task "
            f"{config.task!r}, or `module:object` of your own."
        )
    make = known[name] if name in known else find(name, "config.model.name")
    try:
        return make(**settings)
    except TypeError as error:
        raise ValueError(
            f"`config.model` (={settings}) must hold fields of {name!r}: {error}."
        ) from error
