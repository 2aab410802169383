"""Flags of a network that the user brings (`--onnx`, `--fn`) and the experiment they mean."""

from pathlib import Path
from typing import Any

from absl import flags

from skipconv_jax.commands import common, running
from skipconv_jax.presets import PRESETS, Preset, preset
from skipconv_jax.tasks import Experiment, build
from skipconv_jax.tasks.given.experiment import (
    TASKS,
    GivenExperiment,
    Network,
    configuration,
    from_function,
    from_onnx,
    given,
)
from skipconv_jax.tuning import GatePlan

ONNX = flags.DEFINE_string("onnx", None, "ONNX file of a trained network, instead of --config")
FN = flags.DEFINE_string(
    "fn", None, "module:function that returns (variables, fn) of a trained network"
)
TASK = flags.DEFINE_enum(
    "task", None, TASKS, "what it is for; default: detection with a detector's --preset, else raw"
)
PRESET = flags.DEFINE_string(
    "preset", None, f"{', '.join(sorted(PRESETS))}, or module:object of your own"
)
OUTPUT = flags.DEFINE_string(
    "output", None, "the output that --task pose or segmentation reads, where there are several"
)
GATE_PLAN = flags.DEFINE_string(
    "gate_plan", None, "file of calibrate or fit, instead of --gate, --threshold and --policy"
)
SIZE = flags.DEFINE_list("size", None, "height,width of its input where the file leaves it free")


def named() -> str | None:
    """What the user brings; None where a configuration says it.

    Raises:
      ValueError: both a file and a function.
    """
    if ONNX.value and FN.value:
        raise ValueError(f"`onnx` (={ONNX.value}) and `fn` (={FN.value}) exclude each other.")
    given_name: str | None = ONNX.value or FN.value
    return given_name


def workdir() -> Path:
    """`--workdir`, or runs/<name of the file or function>."""
    if common.WORKDIR.value:
        return Path(common.WORKDIR.value)
    name = Path(ONNX.value).stem if ONNX.value else str(FN.value).replace(":", "_")
    return Path("runs") / name


def _size() -> tuple[int, int] | None:
    if SIZE.value is None:
        return None
    try:
        height, width = (int(side) for side in SIZE.value)
    except ValueError as error:
        raise ValueError(f"`size` (={SIZE.value}) must be two integers height,width.") from error
    return height, width


def _network() -> Network:
    return from_onnx(ONNX.value, _size()) if ONNX.value else from_function(str(FN.value), _size())


def experiment(
    gate: tuple[str | None, float | None, int | None] = (None, None, None), policy: str = ""
) -> tuple[GivenExperiment, dict[str, Any]]:
    """The experiment and its weights.

    Args:
      gate: `--gate`, `--threshold` and `--block`, None for the safe defaults.
      policy: of all convolutions; the drift-free one by default.

    Raises:
      ValueError: a network, task or preset that don't fit.
    """
    network = _network()
    config = configuration(network, gate, policy)
    if GATE_PLAN.value:
        if any(setting is not None for setting in gate):
            raise ValueError(
                f"`gate_plan` (={GATE_PLAN.value!r}) says gates, thresholds and blocks: leave out "
                "--gate, --threshold and --block."
            )
        with config.unlocked():
            config.skip.gate_plan = GATE_PLAN.value
    boxes = PRESET.value is not None and isinstance(preset(PRESET.value), Preset)
    task = TASK.value or ("detection" if boxes else "raw")
    gates = GatePlan.load(GATE_PLAN.value).params() if GATE_PLAN.value else {}
    weights = {"model": network.variables, "gates": gates}
    return given(network, task, PRESET.value, config, OUTPUT.value), weights


def trained() -> tuple[Experiment, dict[str, Any], Path]:
    """The network that is brought, or the configuration's, with its weights; where results go."""
    if named():
        return *experiment(), workdir()
    built = build(common.CONFIG.value)
    spec = running.CHECKPOINT.value or common.newest_phase(common.workdir())
    return built, common.load_weights(built, spec)[1], common.workdir()
