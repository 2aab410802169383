"""Where figures go: JSON lines always, TensorBoard if asked, progress on the terminal."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich import progress
from rich.console import Console

from skipconv_jax import whole_files


class Writer(Protocol):
    """A destination of scalar metrics."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records the values of one step."""
        ...

    def close(self) -> None:
        """Flushes and releases what is open."""
        ...


class JsonLines:
    """One JSON object a line: `{"step": ..., "loss": ..., "seconds": ...}`.

    A run that resumes at step s drops the lines after s, so that the file of a run killed and
    resumed holds each step once, as if it had never stopped.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _keep_lines_until(path, resume_at)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line; a number JSON cannot hold (NaN, inf) is written as its name."""
        row = {"step": step} | {name: _jsonable(value) for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _jsonable(value: Any) -> Any:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _keep_lines_until(path: Path, step: int) -> None:
    """Keeps the complete lines up to `step`; a kill may have left half a line at the end."""
    kept: list[bytes] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            later = json.loads(line)["step"] > step
        # Half a line may be JSON too, of something else.
        except (ValueError, LookupError, TypeError):
            break
        if later:
            break
        kept.append(line)
    # Replaced in one move: a second kill must not lose what the first one left.
    whole_files.write_bytes(path, b"".join(kept))


class TensorBoard:
    """Scalars as TensorBoard events, by tensorboardX (extra `tensorboard`)."""

    def __init__(self, directory: Path, resume_at: int = 0) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "`config.tensorboard` (=True) must have tensorboardX to write events; run "
                "`pip install tensorboardX` or set it to False (JSON lines are always written)."
            ) from error
        self._writer = SummaryWriter(str(directory), purge_step=resume_at or None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one scalar per value."""
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        """Flushes the events."""
        self._writer.close()


class Progress:
    """A bar with the figures and the time left on a terminal, lines elsewhere."""

    def __init__(self, label: str, start: int, total: int, stream: TextIO | None = None) -> None:
        self._label, self._start, self._total = label, start, total
        self._stream = stream or sys.stderr
        self._bar: progress.Progress | None = None
        if self._stream.isatty():
            # Drawn when there is news only: no thread competes with the step for the interpreter.
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(bar_width=24),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[figures]}"),
                console=Console(file=self._stream),
                auto_refresh=False,
            )
            self._task = self._bar.add_task(label, total=total, completed=start, figures="")
        self._began: float | None = None
        self._first = start

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the step, the values and the estimated time left."""
        now = time.monotonic()
        if self._began is None:
            # The first report holds the compilation: time per step is counted from here.
            self._began, self._first = now, step
        shown = "  ".join(f"{k} {_short(v)}" for k, v in values.items() if k != "seconds")
        figures = f"{shown}  {self._left(now, step)}"
        if self._bar is None:
            self._stream.write(f"{self._label} {step}/{self._total}  {figures}\n")
            self._stream.flush()
            return
        self._bar.update(self._task, completed=step, figures=figures)
        if self._bar.live.is_started:
            self._bar.refresh()
        else:
            self._bar.start()

    def _left(self, now: float, step: int) -> str:
        if self._began is None or step <= self._first:
            return "compiled"
        rate = (now - self._began) / (step - self._first)
        return f"{rate * 1e3:.0f} ms/step, {_clock(rate * (self._total - step))} left"

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()


def _short(value: float) -> str:
    return f"{float(value):.4g}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Writers:
    """Several writers as one; closes all of them."""

    def __init__(self, *writers: Writer) -> None:
        self._writers = writers

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hands the values to every writer."""
        for writer in self._writers:
            writer.write(step, values)

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()
