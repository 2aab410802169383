"""A network's time per operation on the native engine, as a table and a timeline."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax import native
from skipconv_jax.commands.evaluate import with_gates
from skipconv_jax.plans import compile_plan
from skipconv_jax.plans.profiling import Ceilings, Profile, ceilings, profile
from skipconv_jax.streaming.sources import open_source
from skipconv_jax.tasks import Experiment
from skipconv_jax.viz.tables import markdown
from skipconv_jax.viz.timeline import timeline


@dataclasses.dataclass(frozen=True)
class Found:
    """What was measured of a network.

    Attributes:
      profile: times of its operations.
      ceilings: of the machine.
      report: of the plan.
      frames: what was played, in words.
      dense_macs: of the network per frame of one stream.
    """

    profile: Profile
    ceilings: Ceilings
    report: str
    frames: str
    dense_macs: int


def measure(
    experiment: Experiment, weights: dict[str, Any], video: str | None, frames: int
) -> Found:
    """Compiles the network and plays frames: of the video, or noise in which everything fires.

    Raises:
      ValueError: no native plan for it, or a video of fewer than two frames.
    """
    params = with_gates(experiment, weights)
    net = experiment.traced_net(weights["model"])
    plan: Any = compile_plan(net, params, experiment.frame(), engine="native")
    played = _of_video(experiment, video, frames) if video else _noise(experiment, frames)
    found = profile(plan, played)
    words = f"{video}, from its first frame on" if video else "noise (--video plays real frames)"
    return Found(found, ceilings(), plan.report(), words, plan.table.macs)


def _noise(experiment: Experiment, count: int) -> Iterator[jax.Array]:
    rng = np.random.default_rng(0)
    shape = experiment.frame().shape
    for _ in range(count + 1):
        yield jnp.asarray(rng.integers(0, 256, shape, np.uint8))


def _of_video(experiment: Experiment, video: str, count: int) -> Iterator[jax.Array]:
    given = 0
    for frame in open_source(video):
        if frame.image is not None:
            yield jnp.asarray(experiment.fit(frame.image)[None])
            given += 1
        if given > count:
            return


def table(found: Found, most: int) -> str:
    """Kinds of operations, then the slowest operations, with what the machine could do above."""
    took, ceiling = found.profile, found.ceilings
    ms = 1e3 * took.seconds.mean(0)
    macs, moved = took.macs(), took.bytes()
    kinds: dict[str, list[int]] = {}
    for i, op in enumerate(took.operations):
        kinds.setdefault(op.kind, []).append(i)
    groups = [(f"{kind} ({len(of)})", "", of) for kind, of in kinds.items()]
    single = [
        (f"{i} {op.kind}", f"{op.name}: {_size(op.source)} to {_size(op.out)}", [i])
        for i, op in enumerate(took.operations)
    ]

    def rows(lines: Sequence[tuple[str, str, list[int]]]) -> list[list[str]]:
        ordered = sorted(lines, key=lambda line: -ms[line[2]].sum())
        return [
            [
                name,
                what,
                *_figures(ms[of].sum(), ms.sum(), macs[of].sum(), moved[of].sum(), ceiling),
            ]
            for name, what, of in ordered
        ]

    head = ["", "", "ms", "share", "MMAC", "GMAC/s", "of peak", "GB/s", "of copy"]
    whole = 1e3 * took.steps.mean()
    dense = found.dense_macs * took.streams
    text = [
        f"{len(took.operations)} operations, {native.isa()}, {native.num_threads()} threads, "
        f"{len(took.steps)} frames of {found.frames}",
        f"{whole:.3f} ms a frame: {ms.sum():.3f} in operations, the rest in dispatch and XLA; "
        f"{macs.sum() / 1e6:.1f} of {dense / 1e6:.1f} MMAC done",
        f"this machine: {ceiling.macs / 1e9:.0f} GMAC/s (XLA's product of large matrices), "
        f"{ceiling.bytes / 1e9:.0f} GB/s (a copy that no cache holds; what is faster reads caches)",
        found.report,
        "",
        markdown(head, rows(groups), left=2),
        "",
        markdown(head, rows(single)[:most], left=2),
    ]
    return "\n".join(text)


def _figures(
    ms: float, total: float, macs: float, moved: float, ceiling: Ceilings
) -> tuple[str, ...]:
    second = max(ms / 1e3, 1e-12)
    speed, flow = macs / second, moved / second
    shown = (f"{macs / 1e6:.2f}", f"{speed / 1e9:.1f}", f"{speed / ceiling.macs:.0%}")
    return (
        f"{ms:.3f}",
        f"{ms / max(total, 1e-12):.1%}",
        *(shown if macs else ("", "", "")),
        f"{flow / 1e9:.1f}",
        f"{flow / ceiling.bytes:.0%}",
    )


def _size(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


def draw(found: Found, path: Path, name: str) -> None:
    """The timeline of the frame that took the median time."""
    at = found.profile.typical()
    seconds = found.profile.seconds[at]
    kinds = [op.kind for op in found.profile.operations]
    title = f"{name}: {1e3 * seconds.sum():.3f} ms, {native.isa()}, {native.num_threads()} threads"
    timeline(kinds, seconds, path, title)
