"""A trained network that a user brings, as an experiment: streamed and compared, not trained."""

import dataclasses
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from skipconv_jax.config import base, set_gate
from skipconv_jax.presets import UNIT, Preset, preset
from skipconv_jax.tasks.given.base import GivenExperiment
from skipconv_jax.tasks.given.boxes import DetectionGiven
from skipconv_jax.tasks.given.keypoints import PoseGiven
from skipconv_jax.tasks.given.network import Network, from_function, from_onnx
from skipconv_jax.tasks.given.raw import RawGiven
from skipconv_jax.tasks.given.segments import SegmentationGiven
from skipconv_jax.transform import SAFE_GATE

__all__ = [
    "TASKS",
    "GivenExperiment",
    "Network",
    "configuration",
    "from_function",
    "from_onnx",
    "given",
]

_PIXELS: Mapping[str, Callable[..., GivenExperiment]] = {
    "raw": RawGiven,
    "pose": PoseGiven,
    "segmentation": SegmentationGiven,
}
TASKS = ("detection", *_PIXELS)


def given(
    network: Network, task: str, name: str | None, config: ConfigDict, output: str | None = None
) -> GivenExperiment:
    """The experiment of a network.

    Args:
      network: to run.
      task: one of `TASKS`.
      name: of a preset: a detector's for detection, else one of pixels (None: RGB in [0, 1]).
      config: from `configuration`, with gate and policy as wanted.
      output: name of the output that pose or segmentation reads, instead of the preset's.

    Raises:
      ValueError: an unknown task, or a preset that is not of its kind.
    """
    if task not in TASKS:
        raise ValueError(f"`task` (={task!r}) must be one of {', '.join(TASKS)}.")
    found = UNIT if name is None else preset(name)
    if isinstance(found, Preset) != (task == "detection"):
        others = "" if task == "detection" else f", and not for {task!r}"
        raise ValueError(
            f"`preset` (={name!r}) must be given for detection{others}: a decoder of boxes, yolox "
            "or fastestdet; the other tasks take unit, imagenet or symmetric."
        )
    if isinstance(found, Preset):
        if output is not None:
            raise ValueError(f"`output` (={output!r}) must be left out: the preset reads them all.")
        return DetectionGiven(config, network, found)
    if output is not None:
        found = dataclasses.replace(found, output=output)
    return _PIXELS[task](config, network, found)


def configuration(
    network: Network,
    gate: tuple[str | None, float | None, int | None] = (None, None, None),
    policy: str = "",
) -> ConfigDict:
    """Settings of a network that is brought: a policy that does not drift, a small threshold.

    Args:
      network: to run.
      gate: name, threshold and block; None for the careful ones.
      policy: of all convolutions; `closed_loop`, which does not drift, by default.
    """
    config = base("given")
    with config.unlocked():
        config.input = ConfigDict({"height": network.size[0], "width": network.size[1]})
        safe = {"name": "input_norm", **dataclasses.asdict(SAFE_GATE)}
        config.skip.gate = ConfigDict(safe, type_safe=False)
        config.skip.policy = policy or "closed_loop"
    return set_gate(config, *gate)
