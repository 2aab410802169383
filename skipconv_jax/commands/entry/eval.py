"""Evaluates on the test clips: `skipconv eval --config hrnet_synthetic`.

Or a trained network of your own on a video: `skipconv eval --onnx FILE --preset yolox --video FILE`
compares it skipped with itself dense: AP of its detections (PCK of keypoints, IoU of classes)
against the dense ones, error, cost; with `--labels FILE` the AP of both against the labels, too.

Prints the task's figures (PCK per joint, AP, top-1), GMAC per frame dense and skipped, and firing
per stage; writes them to `<workdir>/eval.json` and `eval.md`. Without `--checkpoint` it compares
the dense phase, run dense, with the gated phase, run skipped. `--splits=1,2,3` evaluates the runs
in `<workdir>/split1` to `split3` (`skipconv train --splits=1,2,3` makes them) and their mean, and
`--baseline` runs a video detector of the paper's Figure 4 instead of the skipped network.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from skipconv_jax import whole_files
from skipconv_jax.commands import agreement, brought, common, running
from skipconv_jax.commands.baselines import evaluate_baseline
from skipconv_jax.commands.evaluate import (
    Result,
    evaluate_dense,
    evaluate_skipped,
    report,
    split_report,
    write,
)
from skipconv_jax.config import set_gate
from skipconv_jax.data.video_labels import read_labels
from skipconv_jax.streaming.sources import open_source
from skipconv_jax.tasks import DENSE, GATED, build
from skipconv_jax.viz.charts import stage_chart

USAGE = "(--config FILE [--checkpoint PATH] | --onnx FILE --video FILE) [--gate NAME] [--json]"

flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(brought)
flags.adopt_module_key_flags(running)
_JSON = flags.DEFINE_bool("json", False, "print JSON instead of the table")
_BASELINE = flags.DEFINE_string(
    "baseline", None, "video network of the task to run instead of the skipped network"
)
_VIDEO = flags.DEFINE_string("video", None, "video for --onnx or --fn: agreement with the dense")
_LABELS = flags.DEFINE_string(
    "labels", None, "boxes of --video: COCO-style .json or MOTChallenge .txt; adds the usual AP"
)
_FRAMES = flags.DEFINE_integer("frames", 120, "most frames of --video, 0 for all", lower_bound=0)
_START = flags.DEFINE_integer("start", 0, "first frame of --video", lower_bound=0)
_KEY = flags.DEFINE_integer("key_interval", 10, "frames between its key frames", lower_bound=1)


def evaluate(config: ConfigDict, folder: Path) -> list[Result]:
    """Results of the network in `folder`, dense and skipped, for every test of its task."""
    experiment = build(config)
    clips = experiment.first(experiment.clips("test"), config.eval.max_clips)
    dense_from = running.CHECKPOINT.value or folder / DENSE
    gated = folder / GATED if (folder / GATED).is_dir() else folder / DENSE
    label, dense = common.load_weights(experiment, dense_from)
    results = []
    for name, length in experiment.tests().items():
        how = f"{name} dense".strip()
        results.append(evaluate_dense(experiment, dense["model"], clips, f"{label} {how}", length))
        if _BASELINE.value:
            results.append(
                evaluate_baseline(
                    experiment, dense, folder, clips, _BASELINE.value, _KEY.value, length
                )
            )
            continue
        other, weights = common.load_weights(experiment, running.CHECKPOINT.value or gated)
        how = f"{name} skipped".strip()
        results.append(
            evaluate_skipped(
                experiment, weights, clips, f"{other} {how}", length, running.ENGINE.value
            )
        )
    write(experiment, results, config, folder)
    stage_chart(results[-1].firing, folder / "firing.png", results[-1].label)
    return results


def _splits(config: ConfigDict, splits: Sequence[int]) -> None:
    """Evaluates one run per split and prints rows per split with their mean."""
    folder = common.workdir()
    found = {n: evaluate(common.of_split(config, n), folder / f"split{n}") for n in splits}
    text, saved = split_report(build(config), found)
    whole_files.write_text(folder / "splits.json", json.dumps(saved, indent=1) + "\n")
    whole_files.write_text(folder / "splits.md", text + "\n")
    print(json.dumps(saved, indent=1) if _JSON.value else text)


def _agreement() -> None:
    """Compares a network the user brings with itself, dense, and with labels."""
    if _VIDEO.value is None:
        raise ValueError(
            "`video` (=None) must be a video or a folder of images for --onnx or --fn."
        )
    labels = None if _LABELS.value is None else read_labels(_LABELS.value)
    experiment, weights = brought.experiment(common.gate_flags(), running.POLICY.value)
    found = agreement.compare(
        experiment,
        weights,
        open_source(_VIDEO.value),
        _FRAMES.value,
        _START.value,
        running.ENGINE.value,
        running.PRECISION.value,
        labels,
    )
    agreement.write(found, brought.workdir())
    print(json.dumps(found.to_dict(), indent=1) if _JSON.value else agreement.report(found))


def main(argv: Sequence[str]) -> int:
    """Evaluates, prints and returns the exit code."""
    common.no_arguments(argv)
    if brought.named():
        _agreement()
        return 0
    config = set_gate(common.CONFIG.value, *common.gate_flags())
    if common.splits():
        _splits(config, common.splits())
        return 0
    results = evaluate(config, common.workdir())
    text = report(build(config), results)
    print(json.dumps([r.to_dict() for r in results], indent=1) if _JSON.value else text)
    return 0
