"""Damages files, reads them, and sorts what happened; a process of its own for each batch."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.mutate import mutate
from fuzz.readers import Reader, digest, readers

__all__ = ["Outcome", "Reader", "classify", "damage", "digest", "run", "table", "worker"]

SECONDS = 20
"""An input may take; the slowest valid one takes a fiftieth."""
BYTES = 3 << 30
"""A process may have; what imports alone take is below 1 GiB."""
KINDS = ("same", "refused", "changed", "internal error", "hang", "memory", "crash")
_BATCH = 400


class _HangError(BaseException):
    """Not an Exception: no reader may take it for an error of its own."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one input."""

    kind: str
    note: str = ""


def classify(reader: Reader, folder: Path, whole: str) -> Outcome:
    """Reads a damaged example; errors must be a line for users, of the kinds commands print."""

    def stop(*_: Any) -> None:
        raise _HangError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        value = reader.read(folder)
        return Outcome("same" if digest(value) == whole else "changed")
    except (ValueError, OSError, ImportError) as error:
        text = str(error)
        if "\n" in text or not text or len(text) > 4000 or isinstance(error, UnicodeError):
            return Outcome("internal error", f"message {type(error).__name__}: {text[:200]!r}")
        return Outcome("refused", text)
    except _HangError:
        return Outcome("hang")
    except MemoryError:
        return Outcome("memory")
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return Outcome("internal error", f"{type(error).__name__} at {place}: {str(error)[:200]}")
    finally:
        signal.alarm(0)


def damage(reader: Reader, example: Path, folder: Path, seed: int) -> None:
    """A copy of the example with one file damaged; the same for the same seed."""
    rng = np.random.default_rng([seed, *reader.name.encode()])
    shutil.copytree(example, folder)
    paths = sorted(p for p in folder.glob(reader.files) if p.is_file())
    path = paths[int(rng.integers(len(paths)))]
    path.write_bytes(mutate(path.read_bytes(), rng, path.suffix))


def _peak() -> int:
    """Most bytes this program has held. `ru_maxrss` would count those of the process it was
    started from, as Linux keeps them over `exec`."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def worker(name: str, first: int, count: int, log: Path) -> None:
    """Runs a batch; each line of the log is one outcome, begun before it is known."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reader = next(r for r in readers() if r.name == name)
    with tempfile.TemporaryDirectory() as tmp, log.open("a") as out:
        example = Path(tmp, "example")
        example.mkdir()
        reader.make(example)
        shutil.copytree(example, Path(tmp, "read"))
        whole = digest(reader.read(Path(tmp, "read")))
        for seed in range(first, first + count):
            out.write(json.dumps({"seed": seed}) + "\n")
            out.flush()
            folder = Path(tmp, "case")
            damage(reader, example, folder, seed)
            outcome = classify(reader, folder, whole)
            shutil.rmtree(folder)
            if _peak() > BYTES:
                outcome = Outcome("memory", outcome.note)
            out.write(json.dumps({"seed": seed, **dataclasses.asdict(outcome)}) + "\n")
            out.flush()
            if outcome.kind == "memory":
                return  # the peak does not go down again


def run(reader: Reader, seed: int, count: int) -> list[tuple[int, Outcome]]:
    """Outcomes of `count` inputs from `seed` on, whatever becomes of the processes."""
    found: list[tuple[int, Outcome]] = []
    while len(found) < count:
        first = seed + len(found)
        size = min(_BATCH, count - len(found))
        with tempfile.TemporaryDirectory() as tmp:
            log = Path(tmp, "log")
            command = [sys.executable, "-m", "fuzz", "--worker", reader.name, str(first), str(size)]
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OPENCV_LOG_LEVEL": "SILENT"}
            done = subprocess.run(
                [*command, str(log)], env=environment, check=False, capture_output=True,
                timeout=size * SECONDS + 120,
            )  # fmt: skip
            rows = (
                [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
            )
        ended = {row["seed"]: Outcome(row["kind"], row["note"]) for row in rows if "kind" in row}
        if not rows:
            raise RuntimeError(f"{reader.name}: no input was read:\n{done.stderr.decode()[-3000:]}")
        found += sorted(ended.items())
        begun = {row["seed"] for row in rows} - ended.keys()
        found += [(s, Outcome("crash", f"exit code {done.returncode}")) for s in sorted(begun)]
    return found


def table(results: dict[str, list[tuple[int, Outcome]]]) -> str:
    """Outcomes per reader, as Markdown."""
    lines = [f"| reader | inputs | {' | '.join(KINDS)} |", "|---|" + "---:|" * (len(KINDS) + 1)]
    total: Counter[str] = Counter()
    for name, outcomes in results.items():
        counts = Counter(outcome.kind for _, outcome in outcomes)
        total += counts
        cells = [str(counts[kind]) for kind in KINDS]
        lines.append(f"| {name} | {len(outcomes)} | {' | '.join(cells)} |")
    cells = [str(total[kind]) for kind in KINDS]
    lines.append(f"| all | {sum(total.values())} | {' | '.join(cells)} |")
    return "\n".join(lines)
