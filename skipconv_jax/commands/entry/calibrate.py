"""Finds gates for a trained network: `skipconv calibrate --config FILE --budget B`.

B is macs=GMAC, macs=SHARE%, drop=SCORE, error=SHARE (of what counts in the outputs) or ms=TIME, per
frame after the reference frame. `--clip` is a video, a folder of images or a data set like the
config's, which is the default. Of a video the second half is held out, of a data set the test
clips; exit code 3 if held-out frames do not keep the budget. Writes the gate plan and, of
`--method measured`, a picture of the loss over the cost. Run it with
`--config.skip.gate_plan=FILE` (`--gate_plan FILE` beside `--onnx`) in eval and stream, or
`skip(fn, GatePlan.load(FILE))`.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from skipconv_jax.commands import brought, common, running
from skipconv_jax.commands.calibrate import METHODS, Settings, find_gate_plan, picture, report
from skipconv_jax.tuning import Budget
from skipconv_jax.tuning.gate_plan import GATES

USAGE = "(--config FILE | --onnx FILE) --budget macs=30% [--clip VIDEO]"

flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(brought)
flags.adopt_module_key_flags(running)
_BUDGET = flags.DEFINE_string(
    "budget", None, "macs=GMAC, macs=SHARE%, drop=SCORE, error=SHARE or ms=TIME"
)
_CLIP = flags.DEFINE_string("clip", None, "video, images or data set; default the config's data")
_NORM = flags.DEFINE_enum("norm", "input_norm", sorted(GATES), "gate whose thresholds are sought")
_BLOCKS = flags.DEFINE_list("blocks", ["4", "8"], "block sizes to choose from, per layer")
_FRAMES = flags.DEFINE_integer("frames", 32, "frames to calibrate on, and to check", lower_bound=2)
_STREAMS = flags.DEFINE_integer("streams", 4, "clips of the data set to take", lower_bound=1)
_LABELS = flags.DEFINE_bool("labels", False, "drop against labels, not of agreement")
_METHOD = flags.DEFINE_enum(
    "method", "measured", METHODS, "runs of the skipped network, or the dense one's sensitivities"
)
_MARGIN = flags.DEFINE_float(
    "margin", 0.0, "share of the budget left unused, for scenes busier than the clip"
)
_CLIP_START = flags.DEFINE_integer("clip_start", 0, "first frame of a video", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "of the search")
_OUT = flags.DEFINE_string("out", None, "file to write (default <workdir>/gate_plan.json)")

BROKEN = 3


def main(argv: Sequence[str]) -> int:
    """Calibrates, prints, writes and returns the exit code."""
    common.no_arguments(argv)
    if _BUDGET.value is None:
        raise ValueError(
            "`budget` (=None) must be macs=GMAC, macs=SHARE%, drop=SCORE, error=SHARE or ms=TIME."
        )
    if running.PRECISION.value is not None:
        raise ValueError(
            f"`precision` (={running.PRECISION.value!r}) must be left out: thresholds are found in "
            "floats."
        )
    try:
        blocks = tuple(int(block) for block in _BLOCKS.value)
    except ValueError as error:
        raise ValueError(f"`blocks` (={_BLOCKS.value}) must be integers.") from error
    experiment, weights, folder = brought.trained()
    settings = Settings(
        Budget.parse(_BUDGET.value, experiment.table().macs),
        _CLIP.value,
        running.POLICY.value,
        _NORM.value,
        blocks,
        _FRAMES.value,
        _STREAMS.value,
        _LABELS.value,
        running.ENGINE.value,
        _METHOD.value,
        _MARGIN.value,
        _CLIP_START.value,
        _SEED.value,
    )
    gate_plan = find_gate_plan(
        experiment, weights["model"], settings, lambda line: print(line, flush=True)
    )
    out = Path(_OUT.value) if _OUT.value else folder / "gate_plan.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    gate_plan.save(out)
    print(report(gate_plan))
    print(f"wrote {out}")
    if settings.method == "measured":
        picture(gate_plan, out.with_suffix(".png"))
        print(f"wrote {out.with_suffix('.png')}: drop over cost on the held-out frames")
    return 0 if gate_plan.note("held_out")["kept"] else BROKEN
