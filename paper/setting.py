"""What all experiments share: options, data, the network, and the store of finished rows."""

import argparse
import contextlib
import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import flax.linen as nn
import jax
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from skipconv_jax import SkipNet, whole_files
from skipconv_jax import config as configs
from skipconv_jax.data import synthetic_pose
from skipconv_jax.data.clips import PoseClip
from skipconv_jax.macs import Table
from skipconv_jax.models.layers import BasicBlock, ConvBN, Normal, conv
from skipconv_jax.streaming.runner import Streamer
from skipconv_jax.tasks import Experiment, build

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
T = TypeVar("T")
SEEDS = (0, 1, 2)


class TinyPose(nn.Module):
    """Five convolutions that compile at once: the network of `--quick`."""

    joints: int = 15

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ConvBN(6, 3, 2, name="stem")(x, train)
        x = ConvBN(8, 3, 2, name="transition1")(x, train)
        x = BasicBlock(8, name="stage2")(x, train)
        head = conv(self.joints, 1, bias=True, kernel_init=Normal(1e-3), name="final_layer")
        return head(x)


class Missing(ValueError):
    """A row or network, `key`, that `--stored` was to read and nobody computed."""

    def __init__(self, key: str, workdir: Path) -> None:
        super().__init__(f"`workdir` (={workdir}) must hold {key!r}; run without --stored.")
        self.key = key


@dataclasses.dataclass(frozen=True)
class Setting:
    """Options of a run.

    Attributes:
      workdir: of data, checkpoints and finished rows; shared by all experiments.
      out: of tables, JSON and plots.
      quick: toy network, few steps.
      seeds: of the runs where noise matters.
      stored: compute nothing, report what finished rows there are and name the others.
    """

    workdir: Path
    out: Path
    quick: bool = False
    seeds: tuple[int, ...] = SEEDS
    stored: bool = False

    @functools.cached_property
    def config(self) -> ConfigDict:
        """The pose configuration, its data written if need be."""
        config = configs.load(str(ROOT / "configs" / "hrnet_synthetic.py"))
        config.data.root = str(self.workdir / "data")
        config.eval.reset_every = 8
        # Less than the demo's, for some thirty trainings: clips of half of the batch, every other
        # test clip.
        config.gated.update({"batch": 4})
        config.eval.max_clips = 26
        clips, scene = 200, synthetic_pose.Scene(height=180, width=240, frames=24)
        if self.quick:
            clips, scene = 20, synthetic_pose.Scene(height=48, width=64, frames=8, distractors=0)
            config.input.update({"height": 32, "width": 32})
            config.dense.update({"steps": 4, "batch": 2, "warmup": 1})
            config.gated.update({"steps": 2, "batch": 2, "clip_length": 3})
            config.skip.gate.block = 4
            config.eval.update({"batch": 4, "max_clips": 4})
        # Finished rows know nothing of the recipe: rows of two recipes must not meet in one table.
        configs.check_unchanged(config, self.workdir / "config.json", ignore=())
        synthetic_pose.generate(self.workdir / "data", clips, scene, progress=not self.quick)
        return config

    @functools.cached_property
    def experiment(self) -> Experiment:
        """Network, task and data."""
        experiment = build(self.config)
        return dataclasses.replace(experiment, model=TinyPose()) if self.quick else experiment

    @functools.cached_property
    def train_clips(self) -> Sequence[PoseClip]:
        """Clips to train on."""
        return self.experiment.clips("train")

    @functools.cached_property
    def test_clips(self) -> Sequence[PoseClip]:
        """Clips to report on: all, or `max_clips` of them spread over the list, which is sorted."""
        clips = self.experiment.clips("test")
        count = self.config.eval.max_clips or len(clips)
        return clips[:: max(len(clips) // count, 1)][:count]

    @functools.cached_property
    def streamers(self) -> dict[SkipNet, tuple[Table, Streamer]]:
        """Compiled evaluations, for all weights of a network."""
        return {}

    def row(self, key: str, compute: Callable[[], Row]) -> Row:
        """A finished row from the store, or a new one, computed and stored."""
        path = self.workdir / "rows" / f"{key}.json"
        if path.is_file():
            stored: Row = json.loads(path.read_text(encoding="utf-8"))
            return stored
        self.check_computes(key)
        print(f"--- {key}", file=sys.stderr, flush=True)
        row = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        whole_files.write_text(path, json.dumps(row, indent=1) + "\n")
        return row

    @functools.cached_property
    def missing(self) -> list[str]:
        """What `each` left out."""
        return []

    def check_computes(self, key: str) -> None:
        """Refuses to compute `key` where only stored rows are wanted.

        Raises:
          Missing: always, then.
        """
        if self.stored:
            raise Missing(key, self.workdir)

    def each(self, computes: Iterable[Callable[[], T]]) -> list[T]:
        """Results in their order, without those that are not stored where `stored` is set."""
        found = []
        for compute in computes:
            try:
                found.append(compute())
            except Missing as error:
                self.missing.append(error.key)
        return found


def parser(doc: str, name: str) -> argparse.ArgumentParser:
    """Options of every experiment."""
    made = argparse.ArgumentParser(f"python -m paper.{name}", description=doc.splitlines()[0])
    made.add_argument("--workdir", type=Path, help="default runs/experiments, or ...-quick")
    made.add_argument(
        "--out", type=Path, help="default docs/results, or <workdir>/results if quick"
    )
    made.add_argument("--quick", action="store_true", help="toy network; its figures mean nothing")
    made.add_argument(
        "--stored", action="store_true", help="compute nothing: write what finished rows there are"
    )
    made.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    return made


def setting(options: argparse.Namespace) -> Setting:
    """The setting that parsed options stand for."""
    folder = "experiments-quick" if options.quick else "experiments"
    workdir = options.workdir or Path("runs") / folder
    out = options.out or (workdir / "results" if options.quick else Path("docs/results"))
    seeds = tuple(options.seeds[:1] if options.quick else options.seeds)
    return Setting(workdir, out, options.quick, seeds, options.stored)


def command(
    doc: str, name: str, run: Callable[[Setting], None], arguments: Sequence[str] | None
) -> int:
    """Parses and runs an experiment that has no options of its own; returns the exit code."""
    return guarded(run, setting(parser(doc, name).parse_args(arguments)))


def guarded(run: Callable[[Setting], None], where: Setting) -> int:
    """Runs; bad input becomes one line on stderr and exit code 1."""
    try:
        with _kept_programs(where.workdir / "programs"):
            run(where)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _kept_programs(folder: Path) -> Iterator[None]:
    """XLA keeps what it compiles in `folder`: half of a short training is its compilation."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", before or str(folder))
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


def commit() -> str:
    """The commit the code is at, with `+` where files differ from it."""
    try:
        git = functools.partial(
            subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True
        )
        head = git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "-uno"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")
