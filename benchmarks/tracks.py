"""What an answer on every frame is worth to a tracker, against the dense network on every n-th.

    python -m benchmarks.tracks NET.onnx --preset NAME --video A.mp4 [--threshold 0.003 0.01]

Detections of the dense network on every frame, tracked, are what should be seen. Beside them: the
skipped network on every frame, and the dense one on every n-th, for the n whose cost lies beside
the skipped one's, its boxes repeated in between. The tracker is ByteTrack of `supervision` (0.26,
`pip install supervision==0.26.1`, no dependency of this project). A frame of a track is missed
where no box of at least half overlap (IoU) is tracked; an identity switches where the box that
covers a track has another number than the last one that did.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks.live import DenseEngine
from skipconv_jax.commands.evaluate import with_gates
from skipconv_jax.live.config import Network, experiment
from skipconv_jax.live.engine import Engine, PlanEngine
from skipconv_jax.live.regions import Ignore
from skipconv_jax.streaming.sources import Source
from skipconv_jax.viz.tables import markdown

Row = dict[str, Any]
Tracks = list[list[tuple[int, np.ndarray]]]  # per frame: number and box


def answered(engine: Engine, images: Sequence[np.ndarray]) -> tuple[list[Row], float]:
    """Rows of all frames, and the mean share of the dense cost."""
    answers = [engine.run("a", image, n == 0, Ignore(())) for n, image in enumerate(images)]
    return [a.row for a in answers], float(np.mean([a.share for a in answers]))


def tracked(rows: Sequence[Row], rate: float) -> Tracks:
    """ByteTrack over detections."""
    import supervision

    tracker, made = supervision.ByteTrack(frame_rate=rate), []
    for row in rows:
        boxes = np.asarray(row["boxes"], np.float32).reshape(-1, 4)
        names = row["labels"]
        found = supervision.Detections(
            xyxy=boxes,
            confidence=np.asarray(row["scores"], np.float32),
            class_id=np.asarray([hash(name) % 2**31 for name in names], int),
        )
        seen = tracker.update_with_detections(found)
        numbers = [] if seen.tracker_id is None else seen.tracker_id
        made.append([(int(n), box) for n, box in zip(numbers, seen.xyxy, strict=True)])
    return made


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """IoU `(N, M)` of boxes."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (one, other)]
    return np.asarray(both / np.maximum(areas[0][:, None] + areas[1][None] - both, 1e-9))


def compared(truth: Tracks, found: Tracks) -> tuple[int, int, int]:
    """Frames of tracks, those missed, and switches of identity."""
    frames = missed = switches = 0
    last: dict[int, int] = {}
    for real, seen in zip(truth, found, strict=True):
        frames += len(real)
        matched = 0
        if real and seen:
            iou = overlap(np.stack([b for _, b in real]), np.stack([b for _, b in seen]))
            for i, j in zip(*linear_sum_assignment(-iou), strict=True):
                if iou[i, j] < 0.5:
                    continue
                matched += 1
                track, number = real[i][0], seen[j][0]
                switches += last.get(track, number) != number
                last[track] = number
        missed += len(real) - matched
    return frames, missed, switches


def nth(rows: Sequence[Row], n: int) -> list[Row]:
    """Every n-th row, repeated in between."""
    return [rows[k - k % n] for k in range(len(rows))]


def table(video: str, networks: Sequence[Network]) -> list[list[str]]:
    """Rows of the table of one video; one network per threshold."""
    source = Source(video)
    images = [frame.image for frame in source if frame.image is not None]
    rate = float(source.rate)
    ways: list[tuple[str, float, Sequence[Row]]] = []
    dense: list[Row] = []
    for network in networks:
        made, weights = experiment(network)
        if not dense:
            dense, _ = answered(DenseEngine(network.onnx, made, network.min_score), images)
            ways.append(("dense, every frame", 1.0, dense))
        plan = PlanEngine(made, with_gates(made, weights), fired=False)
        skipped, share = answered(plan, images)
        ways.append((f"skipped at {network.threshold:g}, every frame", share, skipped))
    # The counts whose cost lies beside one of the skipped network's.
    counts = {n for _, cost, _ in ways for n in (int(1 / cost), int(1 / cost) + 1) if n > 1}
    ways += [(f"dense, 1 frame in {n}, repeated", 1 / n, nth(dense, n)) for n in sorted(counts)]
    truth = tracked(dense, rate)
    tracks = len({number for frame in truth for number, _ in frame})
    found = []
    for name, cost, rows in sorted(ways, key=lambda way: -way[1]):
        frames, missed, switches = compared(truth, tracked(rows, rate))
        found.append(
            [pathlib.Path(video).stem, name, f"{cost:.0%}", f"{missed / max(tracks, 1):.1f}",
             f"{missed / max(frames, 1):.1%}", f"{switches}", f"{tracks}"]
        )  # fmt: skip
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("network")
    parser.add_argument("--preset", required=True)
    parser.add_argument("--video", required=True, nargs="+")
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.003, 0.01])
    parser.add_argument("--block", type=int, default=8)
    args = parser.parse_args(argv)
    networks = [
        Network(onnx=args.network, preset=args.preset, threshold=threshold, block=args.block)
        for threshold in args.threshold
    ]
    rows = [row for video in args.video for row in table(video, networks)]
    heads = ["video", "answers", "MACs", "missed per track", "missed", "switches", "tracks"]
    print(markdown(heads, rows))


if __name__ == "__main__":
    main()
