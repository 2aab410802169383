"""Streams a video through a skipped network: `skipconv stream VIDEO --config NAME`.

Or through a trained one of your own: `skipconv stream VIDEO --onnx FILE --preset yolox`.

VIDEO is a video file, a folder of images, `labels.json[#name]`, a COCO-style file beside them, or
`module:object`, a source of your own (`streaming.sources.FrameSource`).
Writes the annotated video, JSON lines per frame, a chart and a contact sheet. `--gate=input_norm`
needs no trained gates.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from skipconv_jax.commands import brought, common, running
from skipconv_jax.commands.evaluate import with_gates
from skipconv_jax.commands.stream import Settings, stream
from skipconv_jax.config import set_gate
from skipconv_jax.streaming.sources import open_source
from skipconv_jax.tasks import Experiment, build
from skipconv_jax.tasks.given.experiment import GivenExperiment

USAGE = "VIDEO (--config FILE [--checkpoint PATH] | --onnx FILE [--preset NAME]) [--gate NAME]"

flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(brought)
flags.adopt_module_key_flags(running)
_OUT = flags.DEFINE_string("out", None, "folder to write to (default <workdir>/stream/<VIDEO>)")
_PIECE = flags.DEFINE_integer(
    "piece", 1, "frames run together; more of them answer later", lower_bound=1
)
_RESET = flags.DEFINE_integer(
    "reset_every", 0, "frames between reference frames, 0 never", lower_bound=0
)
_CUT = flags.DEFINE_bool("scene_cut", False, "take a reference frame where the scene is cut")
_DRIFT = flags.DEFINE_integer(
    "drift_every", 0, "frames between measurements against the dense network", lower_bound=0
)
_BOUND = flags.DEFINE_float("drift_bound", 0.1, "relative error past which the stream is reset")
_MOST = flags.DEFINE_integer("max_frames", 0, "stop after so many frames, 0 for all", lower_bound=0)
_BOX = flags.DEFINE_list("box", None, "x1,y1,x2,y2 of the person; default the whole frame")
_SCORE = flags.DEFINE_float(
    "min_score", None, "joints or boxes with less confidence are left out; the preset's, else 0.2"
)


def _box() -> tuple[float, float, float, float] | None:
    if _BOX.value is None:
        return None
    try:
        x1, y1, x2, y2 = (float(side) for side in _BOX.value)
    except ValueError as error:
        raise ValueError(f"`box` (={_BOX.value}) must be four numbers x1,y1,x2,y2.") from error
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"`box` (={_BOX.value}) must have x1 < x2 and y1 < y2.")
    return x1, y1, x2, y2


def _trained() -> tuple[Experiment, str, dict[str, Any], Path]:
    """The network with its weights, their label, and where results go."""
    if name := brought.named():
        given, weights = brought.experiment(common.gate_flags(), running.POLICY.value)
        return given, name, weights, brought.workdir()
    config = set_gate(common.CONFIG.value, *common.gate_flags())
    with config.unlocked():
        config.skip.policy = running.POLICY.value
    experiment = build(config)
    spec = running.CHECKPOINT.value or common.newest_phase(common.workdir())
    return experiment, *common.load_weights(experiment, spec), common.workdir()


def main(argv: Sequence[str]) -> int:
    """Streams, prints the summary and returns the exit code."""
    source = open_source(common.one_source(argv))
    experiment, label, weights, folder = _trained()
    # Scores of detectors are not of one scale: what is sure, the preset knows.
    sure = experiment.task.sure if isinstance(experiment, GivenExperiment) else 0.2
    settings = Settings(
        _PIECE.value,
        _RESET.value,
        _MOST.value,
        _box(),
        sure if _SCORE.value is None else _SCORE.value,
        _CUT.value,
        _DRIFT.value,
        _BOUND.value,
        running.ENGINE.value,
        running.PRECISION.value,
    )
    out = Path(_OUT.value) if _OUT.value else folder / "stream" / source.path.stem
    summary = stream(experiment, with_gates(experiment, weights), source, out, settings)
    print(json.dumps({"weights": label, "out": str(out), **summary}, indent=1))
    return 0
