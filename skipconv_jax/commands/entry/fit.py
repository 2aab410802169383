"""Trains gates for a network of your own, without labels: `skipconv fit VIDEO --onnx FILE`.

Gumbel gates learn from the network run dense, frozen, on clips of VIDEO: to change what it says as
little as possible (`--preset` says what counts) at beta times their cost. One gate plan per beta,
checked on the frames that follow; `--gate_plan FILE` runs it in stream and eval. `--from_plan`
starts from a calibrated plan's thresholds. `--continue_fit` continues what was stopped.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags

from skipconv_jax.commands import brought, common, running
from skipconv_jax.commands.fit import Settings, report, run
from skipconv_jax.streaming.sources import open_source
from skipconv_jax.training.loop import TrainingDiverged
from skipconv_jax.transform import SAFE_GATE
from skipconv_jax.tuning import GatePlan
from skipconv_jax.tuning.fit import Recipe

USAGE = "VIDEO (--config FILE | --onnx FILE [--preset NAME]) [--betas 0.1,0.3]"
ERRORS = (TrainingDiverged,)

flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(brought)
flags.adopt_module_key_flags(running)
_BETAS = flags.DEFINE_list("betas", ["0.1", "0.3"], "weights of the cost, each from the one before")
_STEPS = flags.DEFINE_integer("fit_steps", 200, "steps of each beta", lower_bound=1)
_LENGTH = flags.DEFINE_integer("clip_length", 6, "frames of a clip", lower_bound=2)
_BATCH = flags.DEFINE_integer("fit_batch", 1, "clips of a step", lower_bound=1)
_RATE = flags.DEFINE_float("lr", 0.03, "of the gates, relative to their size")
_SEES = flags.DEFINE_enum("sees", "magnitude", ["magnitude", "signed"], "what gates see of change")
_EPS = flags.DEFINE_float("from_threshold", 5e-3, "Input-Norm threshold that gates start as")
_PLAN = flags.DEFINE_string("from_plan", None, "calibrated gate plan to start from")
_TRAIN = flags.DEFINE_integer("train_frames", 240, "frames of VIDEO to train on", lower_bound=2)
_FIRST = flags.DEFINE_integer("train_start", 0, "the first of them", lower_bound=0)
_HELD = flags.DEFINE_integer("held_out", 60, "frames after them to check on", lower_bound=2)
_FIT_SEED = flags.DEFINE_integer("fit_seed", 0, "of clips and draws")
_CONTINUE = flags.DEFINE_bool("continue_fit", False, "continue a run that was stopped")


def _thresholds() -> Any:
    if _PLAN.value is None:
        return _EPS.value
    plan = GatePlan.load(_PLAN.value)
    return {n: layer.gate.threshold for n, layer in plan.layers if layer.gate is not None}


def main(argv: Sequence[str]) -> int:
    """Trains, prints the trade-off and returns the exit code."""
    source = open_source(common.one_source(argv))
    betas = common.numbers("betas", _BETAS.value)
    experiment, weights, folder = brought.trained()
    recipe = Recipe(
        betas,
        _STEPS.value,
        _LENGTH.value,
        _BATCH.value,
        _RATE.value,
        common.BLOCK.value or SAFE_GATE.block,
        _SEES.value,
        _thresholds(),
        seed=_FIT_SEED.value,
    )
    settings = Settings(
        _TRAIN.value,
        _FIRST.value,
        _HELD.value,
        running.POLICY.value,
        _CONTINUE.value,
        running.ENGINE.value,
    )
    rows, seconds = run(experiment, weights["model"], source, recipe, settings, folder / "fit")
    print(report(rows, seconds))
    return 0
