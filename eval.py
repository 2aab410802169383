"""Evaluates on the test clips: `python eval.py --config configs/hrnet_synthetic.py`.

Prints PCK per joint and mean, GMAC per frame dense and skipped, and firing per stage; writes them
to `<workdir>/eval.json` and `eval.md`. Without `--checkpoint` it compares the dense phase, run
dense, with the gated phase, run skipped.
"""

import json
from collections.abc import Sequence

from absl import flags

from skipconv_jax.commands import common
from skipconv_jax.commands.evaluate import (
    Result,
    evaluate_dense,
    evaluate_skipped,
    report,
    write,
)
from skipconv_jax.config import set_gate
from skipconv_jax.experiment import DENSE, GATED, Experiment, build
from skipconv_jax.viz.charts import stage_chart

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "phase folder, .pth or .safetensors file")
_JSON = flags.DEFINE_bool("json", False, "print JSON instead of the table")


def _results(experiment: Experiment) -> list[Result]:
    clips = experiment.clips("test")[: experiment.config.eval.max_clips or None]
    folder = common.workdir()
    one = _CHECKPOINT.value
    dense_from = one or folder / DENSE
    skipped_from = one or (folder / GATED if (folder / GATED).is_dir() else folder / DENSE)
    label, weights = common.load_weights(experiment, dense_from)
    results = [evaluate_dense(experiment, weights["model"], clips, f"{label} dense")]
    label, weights = common.load_weights(experiment, skipped_from)
    return [*results, evaluate_skipped(experiment, weights, clips, f"{label} skipped")]


def main(argv: Sequence[str]) -> int:
    """Evaluates, prints and returns the exit code."""
    common.no_arguments(argv)
    config = set_gate(common.CONFIG.value, *common.gate_flags())
    results = _results(build(config))
    write(results, config, common.workdir())
    stage_chart(results[-1].firing, common.workdir() / "firing.png", results[-1].label)
    print(json.dumps([r.to_dict() for r in results], indent=1) if _JSON.value else report(results))
    return 0


if __name__ == "__main__":
    common.run(main, "python eval.py --config FILE [--checkpoint PATH] [--gate NAME] [--json]")
