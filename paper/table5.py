"""Table 5: TSN on 25 and on 6 segments of a video, dense and skipped.

On synthetic clips with a small ResNet; `--config configs/tsn_jhmdb.py` runs the paper's experiment
where JHMDB is at hand.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from paper.phases import trained_weights
from paper.report import Claim, Report, curves
from paper.setting import ROOT, Row, Setting, guarded, parser, setting
from skipconv_jax import config as configs
from skipconv_jax.commands.evaluate import Result, evaluate_dense, evaluate_skipped
from skipconv_jax.data import synthetic_pose
from skipconv_jax.tasks import DENSE, GATED, build

PAPER = (
    ("network", "top-1", "GMAC / video"),
    ("TSN-25", "55.49", "194.98"),
    ("TSN-25 + Skip-Conv", "54.77", "41.02"),
    ("TSN-6", "53.84", "46.80"),
    ("TSN-6 + Skip-Conv", "53.77", "35.83"),
)
SYNTHETIC = ROOT / "configs" / "tsn_synthetic.py"


def _config(where: Setting, spec: str) -> ConfigDict:
    config = configs.load(spec)
    if Path(spec) == SYNTHETIC:
        # Longer videos than the pose clips: 25 segments of 50 frames.
        clips, scene = 240, synthetic_pose.Scene(height=120, width=160, frames=50)
        if where.quick:
            clips, scene = 20, synthetic_pose.Scene(height=48, width=64, frames=6, distractors=0)
        config.data.root = str(where.workdir / "videos")
        if not where.stored:
            videos = where.workdir / "videos"
            synthetic_pose.generate(videos, clips, scene, progress=not where.quick)
    if where.quick:
        config.data.short_side = 40
        config.input.update({"height": 32, "width": 32})
        config.model.update({"depths": (1,), "width": 4})
        config.dense.update({"steps": 2, "batch": 2, "clip_length": 2})
        config.gated.update({"steps": 2, "batch": 2, "clip_length": 2})
        config.eval.segments = (4, 2)
    configs.check_unchanged(config, where.workdir / "config-table5.json", ignore=("seed",))
    return config


def _per_video(result: Result, videos: int) -> Row:
    costs = {name: result.clip_length * getattr(result, name)
             for name in ("gmac", "dense_gmac", "gate_gmac")}  # fmt: skip
    return {
        "label": result.label,
        "top1": result.scores["top1"],
        **costs,
        "firing": result.firing,
        "videos": videos,
    }


def measure(where: Setting, config: ConfigDict, seed: int) -> list[Row]:
    """Dense and skipped rows for every number of segments."""
    config = config.copy_and_resolve_references()
    config.seed = seed
    experiment = build(config)

    def compute() -> Row:
        clips, folder = experiment.clips("test"), where.workdir / f"tsn-seed{seed}"
        dense = trained_weights(where, experiment, DENSE, folder, seed, DENSE)["model"]
        gated = trained_weights(where, experiment, GATED, folder, seed, GATED)
        rows = []
        for segments in config.eval.segments:
            name = f"TSN-{segments}"
            plain = evaluate_dense(experiment, dense, clips, name, segments)
            skipped = evaluate_skipped(experiment, gated, clips, f"{name} + Skip-Conv", segments)
            rows += [_per_video(plain, len(clips)), _per_video(skipped, len(clips))]
        return {"rows": rows}

    stored: list[Row] = where.row(f"table5-seed{seed}", compute)["rows"]
    return stored


def report(where: Setting, spec: str) -> None:
    """Measures and writes everything."""
    config = _config(where, spec)
    per_seed = where.each(partial(measure, where, config, seed) for seed in where.seeds)
    if not per_seed:
        where.check_computes("table5")
    rows = []
    for same in zip(*per_seed, strict=True):
        top1, gmac = ([row[name] for row in same] for name in ("top1", "gmac"))
        mean = {"top1": sum(top1) / len(same), "gmac": sum(gmac) / len(same)}
        rows.append(same[0] | mean | {"spread": max(top1) - min(top1)})
    lines = [
        (
            row["label"],
            f"{100 * row['top1']:.2f}"
            + (f" ± {50 * row['spread']:.2f}" if len(per_seed) > 1 else ""),
            f"{row['gmac']:.4f}",
            f"{row['gate_gmac']:.4f}",
            f"{row['dense_gmac'] / row['gmac']:.2f}x",
        )
        for row in rows
    ]
    where.out.mkdir(parents=True, exist_ok=True)
    shown = [row | {"top1": 100 * row["top1"]} for row in rows]
    curves({row["label"]: [row] for row in shown[1:]}, where.out / "table5.png", shown[0],
           y="top1", labels=("GMAC / video", "top-1, %"))  # fmt: skip
    header = ("network", "top-1", "GMAC / video", "gates", "reduction")
    notes = (
        f"{rows[0]['videos']} test videos, so that one video is "
        f"{100 / rows[0]['videos']:.1f} points; ± is half the spread of the seeds, where there are "
        "several.",
    )
    Report("table5", "Table 5: video classification", header, list(lines), PAPER,
           claims(rows), rows, notes).write(where)  # fmt: skip


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The orderings of Table 5: rows are dense, skipped, dense, skipped."""
    many, few = (rows[i]["gmac"] / rows[i + 1]["gmac"] for i in (0, 2))
    lost = [100 * (rows[i]["top1"] - rows[i + 1]["top1"]) for i in (0, 2)]
    return [
        Claim(
            "skipping costs little accuracy (within 2 points)",
            max(lost) <= 2,
            f"points lost: {lost[0]:.2f} and {lost[1]:.2f}",
        ),
        Claim(
            "many segments gain more from skipping than few: they are closer in time",
            many > few,
            f"{many:.2f}x and {few:.2f}x",
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    options: argparse.Namespace = _parser().parse_args(arguments)
    return guarded(lambda where: report(where, options.config), setting(options))


def _parser() -> argparse.ArgumentParser:
    made = parser(__doc__ or "", "table5")
    made.add_argument("--config", default=str(SYNTHETIC), help="a classification configuration")
    return made


if __name__ == "__main__":
    sys.exit(main())
