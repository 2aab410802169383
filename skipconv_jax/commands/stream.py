"""Streams a video through a skipped network and writes what it saw and what it cost."""

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import cv2
import jax
import numpy as np

from skipconv_jax import macs, whole_files
from skipconv_jax.plans import compile_plan
from skipconv_jax.streaming.guards import Drift, Guard, SceneCut
from skipconv_jax.streaming.runner import Reading, Runner
from skipconv_jax.streaming.sources import Frame, FrameSource, VideoError, VideoWriter
from skipconv_jax.tasks import Experiment, View
from skipconv_jax.viz import draw
from skipconv_jax.viz.charts import Bins, stream_chart

Tree = Any
_PLACES = 4  # input pixels per cell of the map of fired blocks


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a stream is run and drawn.

    Attributes:
      piece: frames that are waited for and run together, faster by what a call costs; 1 answers
        each frame as it comes.
      reset_every: frames between reference frames; 0 takes one at the start and after a reset only.
      max_frames: stop after so many; 0 for all.
      box: x1, y1, x2, y2 of the person in frame pixels; None takes the whole frame.
      min_score: joints with less confidence are not drawn, boxes not reported either.
      scene_cut: take a reference frame where the scene is cut.
      drift_every: frames between measurements against the dense network; 0 for none.
      drift_bound: relative error of the last layer past which a reference frame is taken.
      engine: as for `compile_plan`.
      precision: as for `compile_plan`.
    """

    piece: int = 1
    reset_every: int = 0
    max_frames: int = 0
    box: tuple[float, float, float, float] | None = None
    min_score: float = 0.2
    scene_cut: bool = False
    drift_every: int = 0
    drift_bound: float = 0.1
    engine: str = "auto"
    precision: str | None = None

    def resets(self) -> list[Any]:
        """The reset policies asked for."""
        drift = Drift(self.drift_every, self.drift_bound) if self.drift_every else None
        return [policy for policy in (SceneCut() if self.scene_cut else None, drift) if policy]


@dataclasses.dataclass(frozen=True)
class Seen:
    """A frame and what the network made of it; `row` is its line of JSON."""

    image: np.ndarray
    row: dict[str, Any]
    places: np.ndarray | None
    affine: np.ndarray | None


class NetworkStream:
    """One stream through the network: frames in, `Seen` out, state kept on the device."""

    def __init__(self, experiment: Experiment, params: dict[str, Tree], settings: Settings) -> None:
        self._settings = settings
        self.view: View = experiment.view(settings.box, settings.min_score)
        height, width = experiment.size
        # The outputs are read before the next frame, so that they may stay where they are.
        net = experiment.traced_net(params["model"])
        plan = compile_plan(
            net,
            params,
            experiment.frame(),
            engine=settings.engine,
            precision=settings.precision,
            keep_outputs=True,
        )
        self.table, self.engine = plan.table, f"{plan.engine}: {plan.why}"
        guard = Guard.make(plan, settings.resets()) if settings.resets() else None
        cells = (height // _PLACES, width // _PLACES) if plan.table.skipped() else None
        self._runner = Runner(plan, experiment.read, cells, guard)
        self._carry = self._runner.init()
        frame = experiment.frame()
        single = settings.piece == 1
        shape = frame.shape if single else (settings.piece, *frame.shape)
        # Compiled before the first frame arrives, so that no frame's time holds the compilation.
        step: Any = self._runner.step if single else self._runner.piece
        given = jax.ShapeDtypeStruct(shape, np.uint8)
        self._run = step.lower(plan.constants, self._carry, given).compile()

    def __call__(self, frames: Iterator[Frame]) -> Iterator[Seen]:
        """Runs the frames piece by piece; what must not be taken for change resets the stream."""
        piece: list[Frame] = []
        pending, since = "", 0
        for frame in frames:
            due = self._settings.reset_every and since + len(piece) >= self._settings.reset_every
            if frame.event or due:
                yield from self._flush(piece, pending)
                # A reason belongs to the first frame after it, and to that one alone.
                pending = "" if piece else pending
                piece, since = [], 0
                if frame.image is None:
                    pending = frame.event
                    row = {"frame": frame.index, "error": frame.event}
                    yield Seen(np.zeros((0, 0, 3), np.uint8), row, None, None)
                    continue
                pending = "; ".join(filter(None, (pending, frame.event)))
                self._carry = self._runner.reset(self._carry)
            elif pending and not piece:
                # The first good frame after lost ones.
                self._carry = self._runner.reset(self._carry)
            piece.append(frame)
            if len(piece) == self._settings.piece:
                yield from self._flush(piece, pending)
                since, piece, pending = since + len(piece), [], ""
        yield from self._flush(piece, pending)

    def _flush(self, piece: Sequence[Frame], reset: str) -> Iterator[Seen]:
        if not piece:
            return
        images = [frame.image for frame in piece if frame.image is not None]
        affine = self.view.affine(images[0])
        batch = self.view.inputs(images, affine)
        # A short piece is filled up by its last frame; what follows it starts from a reset.
        batch = np.concatenate([batch, np.repeat(batch[-1:], self._settings.piece - len(batch), 0)])
        alone = self._settings.piece == 1
        began = time.perf_counter()
        constants, frames = self._runner.plan.constants, batch if alone else batch[:, None]
        self._carry, reading = self._run(constants, self._carry, frames)
        reading = jax.device_get(reading)
        if alone:
            reading = jax.tree.map(lambda a: np.asarray(a)[None], reading)
        ms = (time.perf_counter() - began) * 1e3 / self._settings.piece
        for t, frame in enumerate(piece):
            yield self._seen(frame, images[t], reading, t, affine, ms, reset if t == 0 else "")

    def _seen(
        self,
        frame: Frame,
        image: np.ndarray,
        reading: Reading,
        t: int,
        affine: np.ndarray,
        ms: float,
        reset: str,
    ) -> Seen:
        said = jax.tree.map(lambda part: np.asarray(part)[t, 0], reading.outputs)
        row: dict[str, Any] = {
            "frame": frame.index,
            "gmac": float(reading.macs[t, 0]) / macs.GIGA,
            "ms": ms,
            "firing": {stage: float(reading.firing[stage][t, 0]) for stage in self.table.stages()},
            **self.view.row(said, affine, image.shape),
        }
        if reading.figures:
            row |= {name: round(float(value[t, 0]), 6) for name, value in reading.figures.items()}
        if reset:
            row["reset"] = reset
        elif reading.fresh is not None and reading.fresh[t, 0] and frame.index:
            row["reset"] = "reset policy"
        places = None if reading.places is None else np.asarray(reading.places[t, 0])
        return Seen(image, row, places, affine)


def annotate(seen: Seen, view: View, dense_gmac: float) -> np.ndarray:
    """The frame with fired blocks, what the network says, and the cost drawn on it."""
    row, image = seen.row, seen.image
    if seen.places is not None and seen.affine is not None:
        image = draw.overlay_firing(image, _on_frame(seen.places, seen.affine, image.shape))
    image = view.draw(image, row)
    text = f"#{row['frame']}  {row['gmac']:.3g} of {dense_gmac:.3g} GMAC  {row['ms']:.1f} ms"
    return draw.caption(image, text + ("  RESET" if "reset" in row else ""))


def _on_frame(places: np.ndarray, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The map of places, which covers the network's input, on the frame."""
    # Cell centres lie at (i + .5) _PLACES - .5 input pixels.
    to_places = affine / _PLACES
    to_places[:, 2] += 0.5 / _PLACES - 0.5
    return cv2.warpAffine(places, to_places, (shape[1], shape[0]),
                          flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)  # fmt: skip


@dataclasses.dataclass
class Summary:
    """Totals of a stream."""

    frames: int = 0
    lost: int = 0
    resets: int = 0
    gmac: float = 0.0
    ms: float = 0.0

    def add(self, row: dict[str, Any]) -> None:
        """Counts one frame."""
        if "error" in row:
            self.lost += 1
            return
        self.frames += 1
        self.resets += "reset" in row
        self.gmac += row["gmac"]
        self.ms += row["ms"]

    def to_dict(self, dense_gmac: float, gate_gmac: float) -> dict[str, Any]:
        """Means per frame."""
        frames = max(self.frames, 1)
        mean = self.gmac / frames
        return {
            "frames": self.frames,
            "lost_frames": self.lost,
            "resets": self.resets,
            "gmac": mean,
            "dense_gmac": dense_gmac,
            "gate_gmac": gate_gmac,
            "reduction": dense_gmac / mean if mean else None,
            "ms": self.ms / frames,
        }


def stream(
    experiment: Experiment,
    params: dict[str, Tree],
    source: FrameSource,
    out: Path,
    settings: Settings,
) -> dict[str, Any]:
    """Streams a source into annotated.mp4, frames.jsonl, chart.png, sheet.png and summary.json.

    Returns:
      The summary.

    Raises:
      VideoError: the source ends before its time or holds no frame that decodes. What was written
        up to there is kept, and valid.
    """
    out.mkdir(parents=True, exist_ok=True)
    runner = NetworkStream(experiment, params, settings)
    dense = runner.table.macs / macs.GIGA
    # A source that does not know its length shows its first 200 frames.
    length = min(filter(None, (source.frames or 200, settings.max_frames)))
    summary, bins, sheet = Summary(), Bins(), _Sheet(length)
    frames = _limited(iter(source), settings.max_frames)
    failure: VideoError | None = None
    with (
        VideoWriter(out / "annotated.mp4", source.rate) as video,
        (out / "frames.jsonl").open("w", encoding="utf-8") as lines,
    ):
        try:
            for seen in runner(frames):
                _record(seen, runner.view, dense, video, lines, sheet)
                summary.add(seen.row)
                if "error" not in seen.row:
                    bins.add(seen.row)
        except VideoError as error:
            failure = error
    totals = summary.to_dict(dense, runner.table.gate_macs / macs.GIGA)
    totals["engine"] = runner.engine
    whole_files.write_text(out / "summary.json", json.dumps(totals, indent=1) + "\n")
    if summary.frames:
        stream_chart(bins.rows(), dense, out / "chart.png")
        draw.save(str(out / "sheet.png"), draw.contact_sheet(sheet.images, columns=4))
    if failure:
        raise failure
    if not summary.frames:
        raise VideoError(
            f"`video` (={source.path}) must hold a frame that decodes; none of {summary.lost} did."
        )
    return totals


def _limited(frames: Iterator[Frame], most: int) -> Iterator[Frame]:
    for count, frame in enumerate(frames):
        if most and count >= most:
            return
        yield frame


def _record(
    seen: Seen, view: View, dense: float, video: VideoWriter, lines: TextIO, sheet: "_Sheet"
) -> None:
    lines.write(json.dumps(seen.row) + "\n")
    if "error" in seen.row:
        return
    picture = annotate(seen, view, dense)
    video.write(picture)
    sheet.offer(seen.row["frame"], picture)


class _Sheet:
    """A few annotated frames spread over the stream."""

    _MOST = 8
    _WIDTH = 480

    def __init__(self, frames: int) -> None:
        self._every = max(1, frames // self._MOST)
        self.images: list[np.ndarray] = []

    def offer(self, index: int, picture: np.ndarray) -> None:
        """Keeps the frame if it is one of those, or the first there is: it may come late."""
        if self.images and (index % self._every or len(self.images) >= self._MOST):
            return
        if self.images:
            size = self.images[0].shape[1::-1]
        else:
            scale = min(1.0, self._WIDTH / picture.shape[1])
            size = tuple(round(side * scale) for side in picture.shape[1::-1])
        self.images.append(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
