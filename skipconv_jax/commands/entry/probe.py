"""Does skipping pay on this video? `skipconv probe VIDEO --onnx FILE --preset yolox`.

Runs some frames of a trained network at a few thresholds, before any tuning: multiply-accumulates,
milliseconds on this machine, agreement with the network run dense, and a verdict. VIDEO is what
`skipconv stream` takes. Exit code 3 where skipping does not pay.
"""

from collections.abc import Sequence

from absl import flags

from skipconv_jax.commands import brought, common, running
from skipconv_jax.commands.probe import Settings, look, report
from skipconv_jax.streaming.sources import open_source
from skipconv_jax.transform import SAFE_GATE
from skipconv_jax.tuning.probe import THRESHOLDS

USAGE = "VIDEO (--config FILE | --onnx FILE [--preset NAME])"

flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(brought)
flags.adopt_module_key_flags(running)
_FRAMES = flags.DEFINE_integer("probe_frames", 48, "frames that are run", lower_bound=2)
_START = flags.DEFINE_integer("probe_start", 0, "the first of them", lower_bound=0)
_TRIED = flags.DEFINE_list("thresholds", [f"{t:g}" for t in THRESHOLDS], "for all layers")

BROKEN = 3


def main(argv: Sequence[str]) -> int:
    """Probes, prints and returns the exit code."""
    source = open_source(common.one_source(argv))
    tried = common.numbers("thresholds", _TRIED.value)
    experiment, weights, _ = brought.trained()
    settings = Settings(
        _FRAMES.value,
        _START.value,
        tried,
        common.BLOCK.value or SAFE_GATE.block,
        running.POLICY.value,
        running.ENGINE.value,
    )
    found = look(experiment, weights["model"], source, settings)
    print(report(found))
    return 0 if found.pays else BROKEN
