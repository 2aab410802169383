"""Turns a dataset's folders into TFDS records: verifies every file, writes, reads back.

    python -m skipconv_jax.data.prepare jhmdb --manual_dir JHMDB --config sub --data_dir data/tfds
    python -m skipconv_jax.data.prepare ua_detrac --manual_dir DETRAC --data_dir data/tfds

Every frame is decoded once. What was found is kept in a journal beside the dataset, so that a
second run, after an interruption or once damaged files were replaced, only looks at what is new.
All that is missing or damaged goes into one report, by file. The dataset's folder appears last,
complete.
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from skipconv_jax import checks
from skipconv_jax.data import jhmdb, records, ua_detrac
from skipconv_jax.data.folders import NOTE, write_text
from skipconv_jax.data.jhmdb_folder import DamagedClipError, JhmdbFolder
from skipconv_jax.data.ua_detrac_folder import EXPECTED, PARTS, DamagedSequenceError, DetracFolder
from skipconv_jax.extras import required

with required():
    import tensorflow_datasets as tfds
    from rich.progress import Progress

Problems = list[tuple[str, str]]
_SHOWN = 40


@dataclasses.dataclass(frozen=True)
class Item:
    """A clip or sequence: its name, frames (0 if damaged) and what is wrong with it."""

    name: str
    frames: int
    problems: Problems


@dataclasses.dataclass(frozen=True)
class Survey:
    """How a dataset is looked through.

    Attributes:
      names: of everything that should be there.
      files: files of one item, for its fingerprint.
      check: decodes all of one item.
      builder: makes the TFDS builder, from keyword arguments.
      notices: what is wrong with the set as a whole.
    """

    names: list[str]
    files: Callable[[str], Iterator[Path]]
    check: Callable[[str], Item]
    builder: Callable[..., tfds.core.GeneratorBasedBuilder]
    notices: Problems


def _survey_jhmdb(root: Path, config: str) -> Survey:
    folder = JhmdbFolder(root)
    subset = jhmdb.Jhmdb.builder_configs[config].subset
    names = list(jhmdb.membership(folder, subset))
    notices: Problems = []
    expected = jhmdb.EXPECTED_CLIPS.get(config)
    if expected is not None and len(names) != expected:
        lists = "splits" if subset == "full" else "sub_splits"
        notices.append((lists, f"the lists name {len(names)} clips, not {expected}"))

    def files(name: str) -> Iterator[Path]:
        yield from folder.frame_paths(name)
        for kind in ("joint_positions", "puppet_mask"):
            yield root / kind / name / f"{kind}.mat"

    def check(name: str) -> Item:
        try:
            return Item(name, folder.clip(name, decode_all=True).length, [])
        except DamagedClipError as error:
            return Item(name, 0, error.problems)

    return Survey(names, files, check, jhmdb.Jhmdb, notices)


def _survey_detrac(root: Path, config: str) -> Survey:
    folder = DetracFolder(root)
    parts = {name: part for part in PARTS for name in folder.names(part)}
    if config == "detrac":
        parts.update({name: part for part in PARTS for name in EXPECTED[part]})
    names = sorted(parts, key=lambda name: (PARTS.index(parts[name]), name))

    def files(name: str) -> Iterator[Path]:
        part = parts[name].capitalize()
        yield from sorted((root / f"Insight-MVT_Annotation_{part}" / name).glob("*.jpg"))
        yield root / f"DETRAC-{part}-Annotations-XML" / f"{name}.xml"

    def check(name: str) -> Item:
        try:
            return Item(name, len(folder.sequence(parts[name], name, decode_all=True).paths), [])
        except DamagedSequenceError as error:
            return Item(name, 0, error.problems)

    return Survey(names, files, check, ua_detrac.UaDetrac, [])


SURVEYS = {"jhmdb": _survey_jhmdb, "ua_detrac": _survey_detrac}
CONFIGS = {"jhmdb": ("full", "sub", "synthetic"), "ua_detrac": ("detrac", "synthetic")}


def _fingerprint(root: Path, paths: Iterator[Path]) -> str:
    """Changes when a file of an item is added, removed or rewritten."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            stat = path.stat()
            line = f"{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n"
            digest.update(line.encode())
    return digest.hexdigest()


class Journal:
    """Items checked before, one JSON line each; a line cut short by a kill is passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[str, str], Item] = {}
        lines = path.read_bytes().splitlines() if path.is_file() else []
        for line in lines:
            try:
                entry = json.loads(line)
                item = Item(entry["name"], entry["frames"], [tuple(p) for p in entry["problems"]])
                self._known[item.name, entry["fingerprint"]] = item
            except (ValueError, LookupError, TypeError):
                continue
        path.parent.mkdir(parents=True, exist_ok=True)
        # Begins on a line of its own, whatever the last run left.
        with path.open("a") as file:
            file.write("\n")

    def find(self, name: str, fingerprint: str) -> Item | None:
        """What an earlier run found, if the files are still the same."""
        return self._known.get((name, fingerprint))

    def add(self, item: Item, fingerprint: str) -> None:
        """Remembers an item."""
        line = {**dataclasses.asdict(item), "fingerprint": fingerprint}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def verify(
    root: Path, survey: Survey, journal: Journal, workers: int, progress: Progress
) -> list[Item]:
    """Checks every item that the journal does not know."""
    task = progress.add_task("Verifying", total=len(survey.names))

    def one(name: str) -> tuple[Item, str, bool]:
        fingerprint = _fingerprint(root, survey.files(name))
        known = journal.find(name, fingerprint)
        return (known, fingerprint, True) if known else (survey.check(name), fingerprint, False)

    items = []
    with ThreadPoolExecutor(workers) as pool:
        for item, fingerprint, known in pool.map(one, survey.names):
            if not known:
                journal.add(item, fingerprint)
            items.append(item)
            progress.advance(task)
    return items


def _remove_leftovers(root: Path) -> None:
    """Deletes what a killed run left; TFDS writes into such a folder and renames it when whole."""
    for leftover in root.glob("incomplete.*"):
        shutil.rmtree(leftover)


def _write(
    survey: Survey,
    manual_dir: Path,
    data_dir: Path,
    config: str,
    leave_out: set[str],
    progress: Progress,
) -> Path:
    task = progress.add_task("Writing", total=len(survey.names) - len(leave_out))
    builder = survey.builder(
        config=config,
        data_dir=data_dir,
        leave_out=leave_out,
        on_item=lambda _: progress.advance(task),
    )
    tfds.disable_progress_bar()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
    )
    return Path(builder.data_dir)


def read_back(path: Path, items: list[Item], progress: Progress) -> None:
    """Reads every record and compares names and frames with what was verified.

    Raises:
      ValueError: a record is missing, or another than was meant.
    """
    source = records.Records(path, keep=1)
    catalogue = source.catalogue()
    task = progress.add_task("Reading back", total=len(catalogue))
    frames: dict[str, int] = {}
    for key in catalogue:
        record = source.read(key)
        name = records.text(record["name"])
        if name != key.entry[0] or len(record["frames"]) != key.entry[-1]:
            raise ValueError(
                f"Record {key.index} of {key.split} in {path} holds {name} with "
                f"{len(record['frames'])} frames, not {key.entry}; delete the folder and prepare "
                "again."
            )
        frames[name] = frames.get(name, 0) + len(record["frames"])
        progress.advance(task)
    expected = {item.name: item.frames for item in items if not item.problems}
    if frames != expected or sum(source.sizes().values()) != len(catalogue):
        differing = sorted(set(frames.items()) ^ set(expected.items()))
        raise ValueError(
            f"{path} differs from the verified files in {differing[:5]}; delete the folder and "
            "prepare again."
        )


def _existing(data_dir: Path, dataset: str, config: str) -> Path | None:
    try:
        return records.folder(data_dir, dataset, config)
    except ValueError:
        return None


def prepare(
    dataset: str,
    manual_dir: Path,
    data_dir: Path,
    config: str | None = None,
    partial: bool = False,
    workers: int = 2,
    quiet: bool = False,
) -> Path | None:
    """Verifies, writes and reads back one config of one dataset.

    Args:
      dataset: `jhmdb` or `ua_detrac`.
      manual_dir: folder of the original layout.
      data_dir: folder to write to.
      config: of the dataset; by default `synthetic` for a generated folder, else the first one.
      partial: write what is whole although something is missing or damaged.
      workers: threads that verify.
      quiet: no progress bar.

    Returns:
      Folder of the dataset, or None where something is missing or damaged and `partial` is False;
      `<data_dir>/<dataset>/<config>.report.json` lists it by file.

    Raises:
      ValueError: an argument is unknown, or nothing is left to write.
    """
    if dataset not in SURVEYS:
        raise ValueError(f"`dataset` (={dataset!r}) must be one of {tuple(SURVEYS)}.")
    workers = checks.positive_integer("workers", workers, "2 is usual.")
    manual_dir, data_dir = Path(manual_dir), Path(data_dir)
    generated = (manual_dir / NOTE).is_file()
    chosen = config or ("synthetic" if generated else CONFIGS[dataset][0])
    if chosen not in CONFIGS[dataset]:
        raise ValueError(f"`config` (={chosen!r}) must be one of {CONFIGS[dataset]}.")
    survey = SURVEYS[dataset](manual_dir, chosen)
    base = data_dir / dataset
    with Progress(disable=quiet) as progress:
        journal = Journal(base / f"{chosen}.verified.jsonl")
        items = verify(manual_dir, survey, journal, workers, progress)
        problems = survey.notices + [p for item in items for p in item.problems]
        _report(base / f"{chosen}.report.json", items, problems)
        if problems and not partial:
            return None
        leave_out = {item.name for item in items if item.problems}
        if len(leave_out) == len(items):
            raise ValueError(
                f"`manual_dir` (={str(manual_dir)!r}) holds no whole item of {dataset}; see "
                f"{base / f'{chosen}.report.json'}."
            )
        _remove_leftovers(base / chosen)
        path = _existing(data_dir, dataset, chosen)
        if path is None:
            path = _write(survey, manual_dir, data_dir, chosen, leave_out, progress)
        read_back(path, items, progress)
    return path


def _report(path: Path, items: list[Item], problems: Problems) -> None:
    whole = [item for item in items if not item.problems]
    report: dict[str, Any] = {
        "expected": len(items),
        "whole": len(whole),
        "frames": sum(item.frames for item in whole),
        "problems": [{"file": file, "problem": fault} for file, fault in problems],
    }
    write_text(path, json.dumps(report, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Command line; exit code 1 where something is missing or damaged, 2 for bad arguments."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m skipconv_jax.data.prepare", description=__doc__.splitlines()[0]
    )
    parser.add_argument("dataset", choices=SURVEYS)
    parser.add_argument("--manual_dir", type=Path, required=True, help="the unpacked download")
    parser.add_argument("--data_dir", type=Path, default=Path("data/tfds"), help="%(default)s")
    parser.add_argument("--config", help=f"of {CONFIGS}")
    parser.add_argument("--partial", action="store_true", help="write what is whole")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    try:
        path = prepare(**vars(args))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    generated = (args.manual_dir / NOTE).is_file()
    config = args.config or ("synthetic" if generated else CONFIGS[args.dataset][0])
    file = args.data_dir / args.dataset / f"{config}.report.json"
    report = json.loads(file.read_text())
    print(f"{report['whole']} of {report['expected']} whole, {report['frames']} frames")
    shown = report["problems"][:_SHOWN]
    for problem in shown:
        print(f"  {problem['file']}: {problem['problem']}")
    if len(shown) < len(report["problems"]):
        print(f"  ... and {len(report['problems']) - len(shown)} more in {file}")
    if path is None:
        print(f"Nothing written; the list is in {file}. --partial writes what is whole.")
        return 1
    print(f"Written and verified: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
