"""Recorded videos through one network by several workers: every frame's row once, whoever dies.

outcomes = run(videos, folder, lambda: Local(VideoWorker, make_engine, rules), workers=2)
"""

import collections
import dataclasses
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from skipconv_jax import json_files, whole_files
from skipconv_jax.live.capture import sampled
from skipconv_jax.live.changes import Changes
from skipconv_jax.live.engine import Engine
from skipconv_jax.live.inbox import joined
from skipconv_jax.live.journal import Journal
from skipconv_jax.live.regions import Ignore
from skipconv_jax.live.workers import CallFailed, Worker, WorkerDied
from skipconv_jax.streaming.sources import Frame, open_source

_log = logging.getLogger("skipconv_jax.live")
TRIES = 3  # workers that may die on a video before it is given up


@dataclasses.dataclass(frozen=True)
class Rules:
    """When a recorded stream takes a reference frame.

    Attributes:
      reset_every: frames between two, which bounds what a resumed video computes again; 0: never.
      cuts: where the scene is cut.
    """

    reset_every: int = 1000
    cuts: bool = True


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a video.

    Attributes:
      video: as it was named.
      rows: written; 0 where it failed.
      share: of the dense network's multiply-accumulates, over the frames this run computed.
      died: workers that died on it.
      error: why there are no rows, '' for none.
    """

    video: str
    rows: int
    share: float
    died: int = 0
    error: str = ""


class VideoWorker:
    """Runs videos one after the other; lives in a worker.

    Args:
      make_engine: makes the network, once.
      rules: of reference frames.
    """

    def __init__(self, make_engine: Callable[[], Engine], rules: Rules) -> None:
        self._engine, self._rules = make_engine(), rules

    def run(self, video: str, path: str) -> tuple[int, float]:
        """Writes the rows of a video, going on where an earlier try ended.

        Returns:
          Rows in the file, and the mean share of the frames that were computed now.
        """
        journal = Journal(Path(path))
        try:
            spent = [row["share"] for row in self._rows(video, journal) if "share" in row]
            journal.finish()
        finally:
            journal.close()
            self._engine.forget(video)
        return journal.rows, sum(spent) / max(len(spent), 1)

    def _rows(self, video: str, journal: Journal) -> Iterator[dict[str, Any]]:
        """Rows as they are written. What is there already since the last reference frame is
        computed again, so that the state, and every row after it, is what it would have been.
        """
        source, written = open_source(video), journal.written
        start, why = written.reference or (0, "")
        pending, since, changes = "", 0, Changes()
        for frame in source:
            if frame.index < start:
                continue
            if frame.image is None:
                pending = joined(pending, frame.event)
                row: dict[str, Any] = {"frame": frame.index, "error": frame.event}
            else:
                small = sampled(frame.image)
                cut = changes.look(small, self._rules.cuts)[1]
                due = 0 < self._rules.reset_every <= since
                first = "begin" if not frame.index or (frame.index == start and not why) else ""
                reasons = (pending, frame.event, "cut" if cut else "", "due" if due else "", first)
                reset = why if frame.index == start and why else _listed(reasons)
                row = self._row(video, frame, float(source.rate), reset)
                changes.ran(small)
                pending, since = "", 1 if reset else since + 1
            if frame.index >= written.rows:
                journal.append(row)
                yield row

    def _row(self, video: str, frame: Frame, rate: float, reset: str) -> dict[str, Any]:
        image: Any = frame.image
        answer = self._engine.run(video, image, bool(reset), Ignore(()))
        height, width = image.shape[:2]
        return {
            "frame": frame.index,
            "time": round(frame.index / rate, 6),
            "size": [width, height],
            "gmac": answer.gmac,
            "share": round(answer.share, 6),
            **({"reset": reset} if reset else {}),
            **answer.row,
        }


def _listed(reasons: Sequence[str]) -> str:
    made = ""
    for reason in reasons:
        made = joined(made, reason)
    return made


def outputs(videos: Sequence[str], folder: Path) -> dict[str, Path]:
    """Where the rows of each video go.

    Raises:
      ValueError: two of them would share a file.
    """
    made = {video: folder / f"{Path(video).name}.jsonl" for video in videos}
    counts = collections.Counter(made.values())
    twice = [str(path.name) for path, count in counts.items() if count > 1]
    if len(made) < len(videos) or twice:
        raise ValueError(
            f"`videos` must have names of their own, as {', '.join(twice) or 'none'} is written "
            "once; run the others into another --out."
        )
    return made


def same_run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes what the rows of a folder are made with, or checks that it is this.

    Raises:
      ValueError: the folder was begun with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "batch.json"
    if not path.exists():
        whole_files.write_text(path, json.dumps(dict(settings), indent=1) + "\n")
        return
    before = json_files.read(path, dict[str, Any])
    now = json.loads(json.dumps(dict(settings)))  # as it was written: tuples are lists there
    changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    if changed:
        key = changed[0]
        raise ValueError(
            f"`out` (={folder}) was begun with {key} {before.get(key)!r}, not {now.get(key)!r}; "
            "go on with the same settings, or name another --out."
        )


def run(
    videos: Sequence[str], folder: Path, make_worker: Callable[[], Worker], workers: int
) -> list[Outcome]:
    """Runs all videos that have no rows yet, the largest first, each by whoever is free.

    Args:
      videos: files, folders or `module:object`.
      folder: of the rows; a video with a finished file is done.
      make_worker: starts a worker whose object is a `VideoWorker`.
      workers: at once.

    Returns:
      An outcome for each video, in their order.
    """
    paths = outputs(videos, folder)
    return _Driver(paths, make_worker).run(workers)


class _Driver:
    """Threads that each hold a worker; a video whose worker died goes back into the queue."""

    def __init__(self, paths: Mapping[str, Path], make_worker: Callable[[], Worker]) -> None:
        self._paths, self._make = paths, make_worker
        self._outcomes: dict[str, Outcome] = {}
        self._died: collections.Counter[str] = collections.Counter()
        done = {video for video, path in paths.items() if path.exists()}
        for video in done:
            with paths[video].open("rb") as file:
                self._outcomes[video] = Outcome(video, sum(1 for _ in file), 0.0)
        waiting = sorted((v for v in paths if v not in done), key=_size, reverse=True)
        self._queue = collections.deque(waiting)
        self._running = 0
        self._changed = threading.Condition()

    def run(self, workers: int) -> list[Outcome]:
        threads = [
            threading.Thread(target=self._work, name=f"batch {n}", daemon=True)
            for n in range(min(workers, len(self._queue)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            # In short waits, so that Ctrl-C is heard.
            while thread.is_alive():
                thread.join(0.2)
        return [self._outcomes[video] for video in self._paths]

    def _work(self) -> None:
        worker: Worker | None = None
        while (video := self._next()) is not None:
            worker = worker or self._make()
            try:
                rows, share = worker.call("run", video, str(self._paths[video]))
                self._done(Outcome(video, rows, share, self._died[video]))
            except CallFailed as error:
                self._done(Outcome(video, 0, 0.0, self._died[video], str(error)))
            except WorkerDied as error:
                worker.stop()
                worker = None
                self._again(video, str(error))
        if worker is not None:
            worker.stop()

    def _next(self) -> str | None:
        """The next video; waits for those under way, which may come back."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or not self._running)
            if not self._queue:
                return None
            self._running += 1
            return self._queue.popleft()

    def _done(self, outcome: Outcome) -> None:
        with self._changed:
            self._outcomes[outcome.video] = outcome
            self._running -= 1
            self._changed.notify_all()

    def _again(self, video: str, reason: str) -> None:
        self._died[video] += 1
        _log.warning("%s: its worker died (%s)", video, reason)
        if self._died[video] >= TRIES:
            text = f"{TRIES} workers died on it, the last one by: {reason}"
            self._done(Outcome(video, 0, 0.0, self._died[video], text))
            return
        with self._changed:
            self._queue.append(video)
            self._running -= 1
            self._changed.notify_all()


def _size(video: str) -> int:
    """Bytes, for files; a folder counts its files'."""
    path = Path(video)
    if path.is_dir():
        return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
    return path.stat().st_size if path.exists() else 0
