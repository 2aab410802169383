"""Skip-Convolutions in JAX: convolutional networks on video that compute only what changed.

Everything most programs need is here by name; it is loaded when it is first used, so that importing
the package costs next to nothing. What is not listed here is reached by its module.
"""

import importlib
from typing import TYPE_CHECKING, Any

from skipconv_jax import moved

if TYPE_CHECKING:
    from skipconv_jax import macs, native, onnx, ops, plans, streaming, tasks, tuning, warp
    from skipconv_jax.ops import (
        IMPLEMENTATIONS,
        POLICIES,
        Accumulate,
        AlwaysGate,
        ClosedLoop,
        ConvNormGate,
        Gate,
        GumbelGate,
        InputNormGate,
        Keyframe,
        OutputNormGate,
        Policy,
        Previous,
        SkipState,
    )
    from skipconv_jax.ops.skip_conv import init_state, skip_conv
    from skipconv_jax.plans import Plan, compile_plan
    from skipconv_jax.quantising import quantize
    from skipconv_jax.streaming.guards import Drift, Every, Guard, SceneCut
    from skipconv_jax.streaming.runner import make_streamer
    from skipconv_jax.transform import Rule, SkipNet, skip
    from skipconv_jax.tuning import Budget, GatePlan, calibrate

__all__ = [
    "IMPLEMENTATIONS",
    "POLICIES",
    "Accumulate",
    "AlwaysGate",
    "Budget",
    "ClosedLoop",
    "ConvNormGate",
    "Drift",
    "Every",
    "Gate",
    "GatePlan",
    "Guard",
    "GumbelGate",
    "InputNormGate",
    "Keyframe",
    "OutputNormGate",
    "Plan",
    "Policy",
    "Previous",
    "Rule",
    "SceneCut",
    "SkipNet",
    "SkipState",
    "calibrate",
    "compile_plan",
    "init_state",
    "macs",
    "make_streamer",
    "native",
    "onnx",
    "ops",
    "plans",
    "quantize",
    "skip",
    "skip_conv",
    "streaming",
    "tasks",
    "tuning",
    "warp",
]

# Where a name lives; every other name of `__all__` is a module of the package.
_HOMES = {
    "ops": (
        "IMPLEMENTATIONS POLICIES Accumulate AlwaysGate ClosedLoop ConvNormGate Gate GumbelGate "
        "InputNormGate Keyframe OutputNormGate Policy Previous SkipState"
    ),
    "ops.skip_conv": "init_state skip_conv",
    "plans": "Plan compile_plan",
    "quantising": "quantize",
    "streaming.guards": "Drift Every Guard SceneCut",
    "streaming.runner": "make_streamer",
    "transform": "Rule SkipNet skip",
    "tuning": "Budget GatePlan calibrate",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

moved.install()


def __getattr__(name: str) -> Any:
    """Loads a name of `__all__` when it is first asked for (PEP 562)."""
    if name in _HOME:
        found = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in __all__:
        found = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
