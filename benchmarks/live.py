"""Live cameras under load and under faults, on this machine.

    python -m benchmarks.live load NET.onnx --preset NAME --videos A.mp4 B.mp4 --rate 5 [--dense]
    python -m benchmarks.live frames [--count 1000000]
    python -m benchmarks.live faults [--disconnects 1000]
    python -m benchmarks.live kills --videos A.mp4 B.mp4 [--count 20]

`load`: cameras are the videos, one after the other, re-encoded at the rate and looped over RTSP by
a server in another process of the same machine (GStreamer's, the tests' own), decoded here. Eight
streams of each video begin at their own times, as cameras have clocks of their own. The most
cameras of which no wanted frame is dropped is found by growing and halving; `--dense` runs
onnxruntime in the same service instead of the plan. `frames`: a fake network, what grows. `faults`:
what is lost when connections and the disk go. `kills`: workers killed (-9) at random moments, of a
batch and of cameras, with a fake network; exits with an error where a row is lost or comes twice.
"""

import argparse
import contextlib
import errno
import http.server
import itertools
import json
import logging
import os
import pathlib
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import cv2
import jax
import numpy as np

from skipconv_jax import whole_files
from skipconv_jax.commands.evaluate import with_gates
from skipconv_jax.live import batch
from skipconv_jax.live.camera import Camera, Retry
from skipconv_jax.live.capture import Connection, Counts, Shot
from skipconv_jax.live.config import CameraPart, Network, experiment
from skipconv_jax.live.engine import Answer, Engine, PlanEngine
from skipconv_jax.live.fleet import Fleet
from skipconv_jax.live.inbox import Inbox
from skipconv_jax.live.outlets import LinesFile, Outlet
from skipconv_jax.live.regions import Ignore
from skipconv_jax.live.service import Service, Watch
from skipconv_jax.live.station import Station
from skipconv_jax.live.workers import Local
from skipconv_jax.streaming.sources import Source
from skipconv_jax.tasks import Experiment
from skipconv_jax.viz.tables import markdown

CLOCKS = 8  # streams of a video; cameras on the same one send their frames at the same moments
SERVER = pathlib.Path(__file__).parent.parent / "tests/live/rtsp_server.py"


class DenseEngine:
    """onnxruntime on the same file, in the place of a plan; one thread a call."""

    def __init__(self, path: str, made: Experiment, min_score: float) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self._view = made.view(None, min_score)
        preset: Any = made.task
        self._prepare, self._read = jax.jit(preset.prepare), jax.jit(made.read)

    def run(self, stream: str, image: np.ndarray, fresh: bool, ignore: Ignore) -> Answer:
        """See `live.engine.Engine`."""
        affine = self._view.affine(image)
        x = self._view.inputs([image], affine)
        began = time.perf_counter()
        y = self._session.run(None, {self._input: np.asarray(self._prepare(x))})[0]
        seen = jax.device_get(self._read(y))
        ms = (time.perf_counter() - began) * 1e3
        row = self._view.row(jax.tree.map(lambda a: a[0], seen), affine, image.shape)
        return Answer(row, 1.0, 0.0, ms)

    def state_bytes(self, stream: str) -> int:
        """None."""
        return 0

    def forget(self, stream: str) -> None:
        """Nothing to forget."""


def byte_stream(video: str, rate: int, path: pathlib.Path, still: bool = False) -> None:
    """A video at another rate, each frame the one shown at its time, as bare H.264.

    Where `still`, its first frame alone, for as long: what a camera sees where nothing happens.
    """
    source = Source(video)
    step = float(source.rate) / rate
    with (
        whole_files.writing(path) as partial,
        av.open(str(partial), "w", format="h264") as container,
    ):
        stream: Any = container.add_stream("libx264", rate=Fraction(rate))
        stream.options = {"g": str(4 * rate), "bf": "0", "crf": "23", "preset": "veryfast"}
        stream.pix_fmt = "yuv420p"
        wanted, first = 0.0, None
        for frame in source:
            if frame.image is None or frame.index < round(wanted):
                continue
            wanted += step
            if not container.streams.video[0].codec_context.is_open:
                stream.height, stream.width = frame.image.shape[:2]
            first = frame.image if first is None or not still else first
            container.mux(stream.encode(av.VideoFrame.from_ndarray(first, format="rgb24")))
        container.mux(stream.encode(None))


@contextlib.contextmanager
def _serving(videos: Sequence[str], rate: int, still: int = 0) -> Iterator[list[str]]:
    """Addresses of the videos over RTSP; the server lives as long as the block."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        shown = [(video, quiet > 0) for video in videos for quiet in range(1 + still)]
        paths = [pathlib.Path(folder) / f"{n}.h264" for n in range(len(shown))]
        for (video, quiet), path in zip(shown, paths, strict=True):
            byte_stream(video, rate, path, quiet)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        named = [f"v{n}c{k}={path}" for n, path in enumerate(paths) for k in range(CLOCKS)]
        # The bindings of GStreamer are the system's Python's.
        command = ["/usr/bin/python3", str(SERVER), str(port), str(rate), *named]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            if server.stdout is None or server.stdout.readline() != b"ready\n":
                raise OSError("`SERVER` must start; install GStreamer's RTSP server (.ci/run).")
            yield [
                f"rtsp://127.0.0.1:{port}/v{n}c{k}"
                for k in range(CLOCKS)
                for n in range(len(paths))
            ]
        finally:
            server.kill()
            server.wait()
            if server.stdout:
                server.stdout.close()


def rss() -> float:
    """Resident megabytes of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _probe(
    engine: Engine, addresses: Sequence[str], count: int, seconds: float, before: float
) -> dict[str, Any]:
    """So many cameras for so long, from when all of them were answered and settled."""
    cameras = [
        (Camera(f"c{n}", addresses[n % len(addresses)], Connection()), Watch())
        for n in range(count)
    ]
    service = Service(engine, cameras, workers=len(os.sched_getaffinity(0)))
    service.start()
    deadline = time.monotonic() + 15 + count / 4
    while time.monotonic() < deadline:
        if all(f.answered > 1 for f in service.figures().values()):
            break
        time.sleep(0.1)
    time.sleep(2)
    start, late = service.figures(), []
    service.listen(lambda seen: late.append(seen.row["latency_ms"]))
    spent = time.process_time()
    time.sleep(seconds)
    end, memory, spent = service.figures(), rss(), time.process_time() - spent
    service.stop()
    for name in end:
        engine.forget(name)
    answers = sum(end[n].answered - start[n].answered for n in end)
    dropped = sum(end[n].camera.dropped - start[n].camera.dropped for n in end)
    share = sum(end[n].macs - start[n].macs for n in end) / max(answers, 1)
    p50, p95, p99 = np.percentile(late or [np.nan], (50, 95, 99))
    return {
        "cameras": count, "answers": answers, "dropped": dropped, "p50": p50, "p95": p95,
        "p99": p99, "share": share, "mb": (memory - before) / count,
        "cpu": spent * 1e3 / max(answers, 1),
    }  # fmt: skip


def most(
    engine: Engine, addresses: Sequence[str], first: int, seconds: float
) -> list[dict[str, Any]]:
    """Probes in the order they were run: up by half until a drop, then between the two."""
    probes: list[dict[str, Any]] = []
    before = rss()

    def fits(count: int) -> bool:
        probes.append(_probe(engine, addresses, count, seconds, before))
        print(json.dumps(probes[-1]), file=sys.stderr, flush=True)
        return probes[-1]["dropped"] == 0

    low, high = 0, 0
    count = first
    while not high:
        if fits(count):
            low, count = count, count + max(count // 2, 1)
        else:
            high = count
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return probes


def load(args: argparse.Namespace) -> None:
    """The table of one engine at one rate."""
    network = Network(
        onnx=args.network, preset=args.preset, threshold=args.threshold, block=args.block
    )
    made, weights = experiment(network)
    cv2.setNumThreads(1)  # as the command does: a thread per stream
    engine: Engine = (
        DenseEngine(args.network, made, network.min_score)
        if args.dense
        else PlanEngine(made, with_gates(made, weights), fired=False)
    )
    with _serving(args.videos, args.rate, args.still) as addresses:
        probes = most(engine, addresses, args.first, args.seconds)
    rows = [
        [
            f"{p['cameras']}", f"{p['answers'] / args.seconds:.0f}", f"{p['dropped']}",
            f"{p['p50']:.1f} / {p['p95']:.1f} / {p['p99']:.1f}", f"{p['cpu']:.1f}",
            f"{100 * p['share']:.1f}%", f"{p['mb']:.0f}",
        ]
        for p in sorted(probes, key=lambda p: p["cameras"])
    ]  # fmt: skip
    name = "onnxruntime, dense" if args.dense else "skipped"
    heads = [
        "cameras", "answers/s", "dropped", "latency p50 / p95 / p99, ms", "CPU ms/answer",
        "MACs of the dense", "MB/camera",
    ]  # fmt: skip
    print(f"{pathlib.Path(args.network).stem}, {args.rate} fps, {name}\n")
    print(markdown(heads, rows))


class Nothing:
    """A network that answers at once."""

    def run(self, stream: str, image: np.ndarray, fresh: bool, ignore: Ignore) -> Answer:
        """See `live.engine.Engine`."""
        return Answer({"boxes": [[0, 0, 1, 1]], "scores": [1.0], "labels": ["x"]}, 0.1, 0.1, 0.0)

    def state_bytes(self, stream: str) -> int:
        """None."""
        return 0

    def forget(self, stream: str) -> None:
        """Nothing to forget."""


def _counted(count: int) -> Any:
    """A source of so many frames, as fast as they are taken."""
    image = np.zeros((36, 64, 3), np.uint8)

    def opened(
        address: str, connection: Connection, counts: Counts, stop: threading.Event
    ) -> Iterator[Shot]:
        for number in range(count):
            counts.frames += 1
            yield Shot(number, time.time(), time.monotonic(), 0.0, "", lambda: image, image)

    return opened


def frames(args: argparse.Namespace) -> None:
    """What a million frames leave behind."""
    each = args.count // 4
    cameras = [
        (Camera(f"c{n}", "none", inbox=Inbox(4, "wait"), open_=_counted(each)), Watch())
        for n in range(4)
    ]
    with tempfile.TemporaryDirectory() as folder:
        lines = LinesFile(pathlib.Path(folder) / "out.jsonl", rotate=10_000_000, keep=2)
        outlet = Outlet("lines", lines, queue=1000)
        service = Service(Nothing(), cameras, [outlet], workers=2)
        began, rows = time.monotonic(), []
        service.start()
        over = False
        while not over:
            over = service.wait(args.count / 100_000)
            done = sum(f.answered for f in service.figures().values())
            rows.append([f"{done}", f"{rss():.1f}", f"{threading.active_count()}"])
        service.stop()
        seconds = time.monotonic() - began
        status = outlet.status()
    print(markdown(["frames", "MB resident", "threads"], rows[:: max(len(rows) // 10, 1)]))
    print(f"\n{args.count / seconds:.0f} frames a second; lines written {status.written}, lost "
          f"{status.lost}; {len(os.listdir('/proc/self/fd'))} open files")  # fmt: skip


class _Hangup(http.server.BaseHTTPRequestHandler):
    """Six pictures, and the connection is gone."""

    data = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    served = 0

    def do_GET(self) -> None:
        """MJPEG."""
        type(self).served += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for _ in range(6):
            head = (
                f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(self.data)}\r\n\r\n"
            )
            self.wfile.write(head.encode() + self.data + b"\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def disconnects(count: int) -> None:
    """A camera whose connection breaks so often."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hangup)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/video"
    camera = Camera("c", address, Connection(), Inbox(4, "wait"), Retry(0.001, 0.001))
    service = Service(Nothing(), [(camera, Watch())])
    service.start()
    marks: list[tuple[float, int, int]] = []
    while (status := camera.status()).reconnects < count:
        if not marks or status.reconnects >= len(marks) * count // 4:
            marks.append((rss(), len(os.listdir("/proc/self/fd")), threading.active_count()))
        time.sleep(0.01)
    service.stop()
    figures = service.figures()["c"]
    server.shutdown()
    server.server_close()
    print(f"{figures.camera.reconnects} reconnects: {_Hangup.served} connections, "
          f"{figures.camera.frames} frames read, {figures.answered} answered; MB resident, open "
          f"files and threads at each quarter: {marks}")  # fmt: skip


def full_disk(rows: int) -> None:
    """A file that may not grow for a while: what is in it afterwards."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "out.jsonl"
        outlet = Outlet("lines", LinesFile(path), queue=100, retry=0.01)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for number in range(rows):
            if number == rows // 3:
                # In the middle of a line that is yet to come.
                resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 333, hard))
            if number == 2 * rows // 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            outlet.put("c", json.dumps({"frame": number, "pad": "x" * 50}).encode() + b"\n")
            time.sleep(0.0005)
        outlet.close()
        status = outlet.status()
        found = [json.loads(line)["frame"] for line in path.read_text().splitlines()]
    if len(found) != status.written or found != sorted(set(found)):
        raise AssertionError("lines are broken, twice or out of order")
    print(f"full disk for a third of {rows} answers ({errno.errorcode[errno.EFBIG]}): "
          f"{status.written} written, each whole, once and in order; {status.lost} lost, counted, "
          f"with a queue of 100")  # fmt: skip


def faults(args: argparse.Namespace) -> None:
    """Each fault and what was lost; the broker's is `tests/live/test_mqtt.py`."""
    disconnects(args.disconnects)
    full_disk(3000)


class Slow(Nothing):
    """A network that takes its time; its answers depend on all frames since the reference."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def run(self, stream: str, image: np.ndarray, fresh: bool, ignore: Ignore) -> Answer:
        """See `live.engine.Engine`."""
        time.sleep(0.02)
        before = 0 if fresh else self._seen[stream]
        self._seen[stream] = (31 * before + int(image[::16, ::16].sum())) % 2**31
        return Answer({"seen": self._seen[stream]}, 1.0 if fresh else 0.1, 0.1, 5.0)


def _killing(workers: list[Local], count: int, seconds: float, over: threading.Event) -> list[int]:
    """Kills a random worker so often, at random moments; which."""
    chance, killed = random.Random(0), list[int]()
    while len(killed) < count and not over.wait(chance.uniform(0.2, 1) * seconds):
        running = [worker for worker in workers if worker.alive]
        if running:
            victim = chance.choice(running)
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(victim.pid)
    return killed


def batch_kills(videos: Sequence[str], count: int) -> None:
    """Videos whose workers are killed: the rows must be those of a run without a kill."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        rules, paths = batch.Rules(200), {}
        for name in ("whole", "killed"):
            (root / name).mkdir()
            paths[name] = batch.outputs(videos, root / name)
        alone = batch.VideoWorker(Slow, rules)
        for video, path in paths["whole"].items():
            alone.run(video, str(path))
        started: list[Local] = []

        def make() -> Local:
            started.append(Local(batch.VideoWorker, Slow, rules))
            return started[-1]

        over, died = threading.Event(), 0
        killer = threading.Thread(
            target=lambda: killed.extend(_killing(started, count, 2, over)), daemon=True
        )
        killed: list[int] = []
        killer.start()
        while True:
            outcomes = batch.run(videos, root / "killed", make, workers=2)
            died += sum(outcome.died for outcome in outcomes)
            if not any(outcome.error for outcome in outcomes):
                break  # else a video lost three workers: the command is called again
        over.set()
        killer.join()
        same = [
            paths["whole"][video].read_bytes() == paths["killed"][video].read_bytes()
            for video in videos
        ]
        rows = sum(path.read_bytes().count(b"\n") for path in paths["killed"].values())
    if not all(same):
        raise AssertionError("rows differ from those of a run without a kill")
    print(f"batch: {len(killed)} kills, {died} of them on a video: {rows} rows, byte for byte "
          "those of a run without a kill")  # fmt: skip


def camera_kills(video: str, count: int) -> None:
    """Cameras whose workers are killed: no row twice, and how long each camera was without one."""
    started: list[Local] = []

    def make() -> Local:
        started.append(Local(Station, Slow, 2))
        return started[-1]

    parts = [CameraPart(name=f"c{n}", address=video, loop=True, cuts=False) for n in range(6)]
    arrivals: dict[str, list[tuple[float, int, str]]] = {part.name: [] for part in parts}

    def seen(answer: Any) -> None:
        row = answer.row
        arrivals[row["camera"]].append((time.monotonic(), row["frame"], row.get("reset", "")))

    fleet = Fleet(parts, make, 2)
    fleet.listen(seen)
    fleet.start()
    while not all(len(own) > 10 for own in arrivals.values()):
        time.sleep(0.1)
    killed = _killing(started, count, 6, threading.Event())
    time.sleep(8)
    fleet.stop()
    gaps, moves = [], 0
    for own in arrivals.values():
        numbers = [number for _, number, _ in own]
        if numbers != sorted(set(numbers)):
            raise AssertionError("a frame came twice, or out of order")
        for (before, *_), (after, _, why) in itertools.pairwise(own):
            if "its worker died" in why:
                moves += 1
                gaps.append(after - before)
    answered = sum(f.answered for f in fleet.figures().values())
    if answered != sum(map(len, arrivals.values())):
        raise AssertionError("answers are not counted once")
    p50, most = np.median(gaps), max(gaps)
    print(f"cameras: {len(killed)} kills, {fleet.died} deaths noticed, {moves} moves of 6 cameras "
          f"to another worker: {answered} answers, none twice; {p50:.1f} s (median) and "
          f"{most:.1f} s (most) from a camera's last answer to the next")  # fmt: skip


def kills(args: argparse.Namespace) -> None:
    """What killed workers cost."""
    batch_kills(args.videos, args.count)
    camera_kills(args.videos[0], args.count)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses and runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parts = parser.add_subparsers(required=True)
    loaded = parts.add_parser("load")
    loaded.add_argument("network")
    loaded.add_argument("--preset", required=True)
    loaded.add_argument("--videos", nargs="+", required=True)
    loaded.add_argument("--rate", type=int, default=5)
    loaded.add_argument("--threshold", type=float, default=0.01)
    loaded.add_argument("--block", type=int, default=8)
    loaded.add_argument(
        "--still", type=int, default=0, help="for each moving camera so many that see a still scene"
    )
    loaded.add_argument("--dense", action="store_true")
    loaded.add_argument("--first", type=int, default=8, help="cameras of the first probe")
    loaded.add_argument("--seconds", type=float, default=8)
    loaded.set_defaults(run=load)
    many = parts.add_parser("frames")
    many.add_argument("--count", type=int, default=1_000_000)
    many.set_defaults(run=frames)
    killing = parts.add_parser("kills")
    killing.add_argument("--count", type=int, default=20)
    killing.add_argument("--videos", nargs="+", required=True)
    killing.set_defaults(run=kills)
    faulty = parts.add_parser("faults")
    faulty.add_argument("--disconnects", type=int, default=1000)
    faulty.set_defaults(run=faults)
    logging.getLogger("skipconv_jax.live").setLevel(logging.ERROR)  # what breaks here is meant to
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
