"""Modules under the names they had in 0.1.0: they import, with a `DeprecationWarning`, until 0.3.

`import skipconv_jax.plan` gives a module with everything that `skipconv_jax.plans.native` has. The
objects are the same ones; only the module around them is another.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

PACKAGE = __name__.rpartition(".")[0]

# Longest prefix first where one is within another: a submodule of a moved package moved with it.
MOVED = {
    "calibration": "tuning",
    "calibration.plan": "tuning.gate_plan",
    "canonical": "program.canonical",
    "data.videos": "data.labelled_videos",
    "experiment": "tasks",
    "experiment.base": "tasks.base",
    "experiment.classification": "tasks.classification.experiment",
    "experiment.detection": "tasks.detection.experiment",
    "experiment.pose": "tasks.pose.experiment",
    "graph": "program.fold",
    "jaxprs": "program.jaxprs",
    "ops.checks": "checks",
    "ops.conv": "ops.masked_conv",
    "ops.conv.pallas_gpu": "ops.masked_conv.pallas.gpu",
    "ops.conv.pallas_tpu": "ops.masked_conv.pallas.tpu",
    "ops.conv.reference": "ops.masked_conv.dense",
    "plan": "plans.native",
    "plan_xla": "plans.folded",
    "reset": "streaming.guards",
    "tasks.anchors": "tasks.detection.anchors",
    "tasks.average_precision": "tasks.detection.metrics",
    "tasks.protocols": "tasks.detection.metrics",
    "trace": "program.walk",
    "video": "streaming.sources",
}


# Names within modules that stayed: (module, name) to (module, name).
NAMES = {
    ("tuning", "Plan"): ("tuning.gate_plan", "GatePlan"),
    ("tuning", "LayerPlan"): ("tuning.gate_plan", "LayerGate"),
    ("tuning.gate_plan", "Plan"): ("tuning.gate_plan", "GatePlan"),
    ("tuning.gate_plan", "LayerPlan"): ("tuning.gate_plan", "LayerGate"),
    ("streaming", "Reading"): ("streaming.runner", "Reading"),
    ("streaming", "Streamer"): ("streaming.runner", "Streamer"),
    ("streaming", "make_plan_streamer"): ("streaming.runner", "make_streamer"),
    ("streaming", "make_streamer"): ("streaming.runner", "make_streamer"),
    ("streaming.runner", "make_plan_streamer"): ("streaming.runner", "make_streamer"),
    ("streaming.runner", "stage_firing"): ("macs", "stage_firing"),
    ("streaming.runner", "firing_map"): ("macs", "firing_map"),
}


def attribute(module: str, name: str) -> Any:
    """What a module's `__getattr__` returns for a name it had once.

    Raises:
      AttributeError: it never had it.
    """
    home, new = NAMES.get((module.removeprefix(f"{PACKAGE}."), name), ("", ""))
    if not home:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    _warn(f"{module}.{name}", f"{PACKAGE}.{home}.{new}", 4)
    return getattr(importlib.import_module(f"{PACKAGE}.{home}"), new)


def _warn(old: str, new: str, level: int) -> None:
    warnings.warn(
        f"`{old}` is now `{new}`; the old name goes away in 0.3.", DeprecationWarning, level
    )


def new_name(name: str) -> str | None:
    """Where a module went, as a full name; None for one that did not move."""
    inside = name.removeprefix(f"{PACKAGE}.")
    parts = inside.split(".")
    for count in range(len(parts), 0, -1):
        old = ".".join(parts[:count])
        if old in MOVED and inside != name:
            return ".".join([PACKAGE, MOVED[old], *parts[count:]])
    return None


class _Alias(importlib.abc.Loader):
    """Loads the new module under the old name."""

    def __init__(self, target: str) -> None:
        self._target = target

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """The default: an empty module. The new one must keep its own `__spec__`."""
        del spec
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Takes over everything the new module has."""
        target = importlib.import_module(self._target)
        _warn(module.__name__, self._target, 3)
        own = {key: value for key, value in vars(target).items() if not key.startswith("__")}
        vars(module).update(own, __doc__=target.__doc__, __getattr__=lambda n: getattr(target, n))


class MovedFinder(importlib.abc.MetaPathFinder):
    """Finds modules by their old names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A module that stands for the moved one; None for every other name."""
        del path, target
        new = new_name(fullname)
        if new is None:
            return None
        # As a package, so that its submodules are asked for here too.
        return importlib.machinery.ModuleSpec(fullname, _Alias(new), is_package=True)


def install() -> None:
    """Adds the finder, once.

    Before Python's own: what a folder of an older version left behind (`__pycache__`) must not be
    taken for a package.
    """
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedFinder())
