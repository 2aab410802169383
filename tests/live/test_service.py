"""The service with a fake network: order, resets, faults; and `skipconv serve` with a small one."""

import json
import threading
import time

import jax
import numpy as np
import pytest

from skipconv_jax.commands import cli
from skipconv_jax.live.camera import Camera
from skipconv_jax.live.capture import Shot
from skipconv_jax.live.engine import Answer, PlanEngine
from skipconv_jax.live.inbox import Inbox
from skipconv_jax.live.outlets import Outlet
from skipconv_jax.live.regions import Ignore
from skipconv_jax.live.service import Service, Watch
from skipconv_jax.tasks.given.experiment import Network, configuration, given
from tests.live.conftest import until, write_clip
from tests.live.test_outlets import Writer

IMAGE = np.zeros((36, 64, 3), np.uint8)


class Fake:
    """An engine that remembers what it ran; it fails where a pixel says so."""

    def __init__(self, seconds=0.0):
        self.ran, self.forgotten, self.seconds = [], [], seconds
        self.running = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()

    def run(self, stream, image, fresh, ignore):
        self.open.wait(10)
        time.sleep(self.seconds)
        self.ran.append((stream, int(image[0, 0, 0]), fresh))
        if image[0, 0, 1]:
            raise RuntimeError("a frame it can't take")
        return Answer({"boxes": [[0, 0, 10, 10]]}, 1.0 if fresh else 0.1, 0.1, 1.0, None)

    def state_bytes(self, stream):
        return 100

    def forget(self, stream):
        self.forgotten.append(stream)


def _camera(name, images, wait=True, thumbnails=True, events=()):
    """A camera of given pictures; they come as fast as they are taken, or all at once."""
    events = dict(events)

    def opened(address, connection, counts, stop):
        for number, image in enumerate(images):
            counts.frames += 1
            yield Shot(
                number,
                1e9 + number,
                time.monotonic(),
                float(number),
                events.get(number, ""),
                lambda image=image: image,
                image if thumbnails else None,
            )

    return Camera(name, "none", inbox=Inbox(1, "wait" if wait else "newest"), open_=opened)


def _numbered(count, **changes):
    images = []
    for number in range(count):
        image = IMAGE.copy()
        image[0, 0, 0] = number
        images.append(image)
    for number, value in changes.get("bad", {}).items():
        images[number][0, 0, 1] = value
    return images


def _run(engine, streams, workers=1, **kwargs):
    writer = Writer()
    service = Service(engine, streams, [Outlet("test", writer)], workers, **kwargs)
    service.start()
    assert service.wait(20)
    service.stop()
    return service, [json.loads(line) for line in writer.lines]


def test_every_frame_is_answered_in_order_and_the_first_is_a_reference_frame():
    engine = Fake()
    streams = [(_camera(name, _numbered(20)), Watch(reset_every=8)) for name in "ab"]
    service, rows = _run(engine, streams, workers=2)
    for name in "ab":
        own = [row for row in rows if row["camera"] == name]
        assert [row["frame"] for row in own] == list(range(20))
        resets = {row["frame"]: row["reset"] for row in own if "reset" in row}
        assert resets == {0: "connected", 8: "due", 16: "due"}
        figures = service.figures()[name]
        assert (figures.answered, figures.resets, figures.failed) == (20, 3, 0)
        assert figures.macs == pytest.approx(3 + 1.7)
        assert all(0 <= late < 5 for late in figures.latency)
        assert figures.camera.state in ("ended", "stopped")
    fresh = [number for name, number, fresh in engine.ran if fresh and name == "a"]
    assert fresh == [0, 8, 16]


def test_a_frame_that_fails_is_said_and_the_next_is_a_reference_frame():
    engine = Fake()
    camera = _camera("a", _numbered(6, bad={3: 1}))
    other = _camera("b", _numbered(6))
    service, rows = _run(engine, [(camera, Watch()), (other, Watch())])
    own = [row for row in rows if row["camera"] == "a"]
    assert [row.get("error") for row in own] == [None, None, None, "RuntimeError", None, None]
    assert own[4]["reset"] == "after a failed frame"
    assert engine.forgotten == ["a"]
    assert service.figures()["a"].failed == 1
    assert service.figures()["b"].answered == 6


def test_events_cuts_and_requests_reset_a_stream():
    images = _numbered(8)
    for image in images[5:]:
        image[1:] = 200
    camera = _camera("a", images, events={2: "damaged"})
    _, rows = _run(Fake(), [(camera, Watch())])
    resets = {row["frame"]: row["reset"] for row in rows if "reset" in row}
    assert resets == {0: "connected", 2: "damaged", 5: "cut"}
    camera = _camera("a", images)
    _, rows = _run(Fake(), [(camera, Watch(cuts=False))])
    assert [row["frame"] for row in rows if "reset" in row] == [0]


def test_a_slow_network_drops_the_oldest_and_counts_them():
    engine = Fake()
    engine.open.clear()
    camera = _camera("a", _numbered(50), wait=False)
    service = Service(engine, [(camera, Watch())])
    service.start()
    until(lambda: camera.status().state == "ended")
    engine.open.set()
    assert service.wait(10)
    service.stop()
    answered = [number for _, number, _ in engine.ran]
    assert answered[-1] == 49, "the newest frame is answered"
    assert len(answered) + camera.status().dropped == 50


def test_zones_are_in_the_answers():
    watch = Watch(zones={"here": [(0, 0), (1, 0), (1, 1), (0, 1)]})
    _, rows = _run(Fake(), [(_camera("a", _numbered(2)), watch)])
    assert [row["zones"] for row in rows] == [[["here"]]] * 2


def test_a_reset_of_no_camera_is_an_error():
    service = Service(Fake(), [(_camera("a", []), Watch())])
    with pytest.raises(KeyError):
        service.reset("b")


def _network():
    def fn(kernel, x):  # (B, 3, 32, 32)
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME")

    kernel = jax.random.normal(jax.random.key(0), (4, 3, 3, 3)) / 5
    network = Network(fn, kernel, (32, 32), "small")
    made = given(network, "raw", None, configuration(network, (None, 1e-3, 4)))
    params, _ = made.net().init(kernel, made.frame())
    return made, params


@pytest.fixture(scope="module")
def engine():
    made, params = _network()
    return PlanEngine(made, params)


def test_streams_share_a_plan_and_nothing_else(engine):
    rng = np.random.default_rng(0)
    clips = {name: rng.integers(0, 256, (3, 32, 32, 3), np.uint8) for name in "ab"}
    nothing = Ignore(())
    mixed = {name: [] for name in "ab"}
    for t in range(3):
        for name in "ab":
            mixed[name].append(engine.run(name, clips[name][t], t == 0, nothing))
    for name in "ab":
        engine.forget(name)
        assert engine.state_bytes(name) == 0
        alone = [engine.run("c", image, t == 0, nothing) for t, image in enumerate(clips[name])]
        assert [a.row for a in alone] == [a.row for a in mixed[name]]
        engine.forget("c")


def test_a_still_picture_costs_nothing_and_an_ignored_region_never_fires(engine):
    rng = np.random.default_rng(1)
    first = rng.integers(0, 256, (32, 32, 3), np.uint8)
    ignore = Ignore([[(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)]])
    start = engine.run("park", first, True, ignore)
    assert start.share == 1.0
    assert engine.run("park", first, False, ignore).share == 0.0, "what is parked costs nothing"
    for _ in range(5):
        noisy = first.copy()
        noisy[:, :16] = rng.integers(0, 256, (32, 16, 3), np.uint8)
        seen = engine.run("park", noisy, False, ignore)
        assert seen.share == 0.0
        assert not seen.fired.any()
        assert seen.row == start.row
    moved = first.copy()
    moved[:, 24:] = 0
    seen = engine.run("park", moved, False, ignore)
    assert 0 < seen.share < 0.6
    assert seen.fired[:, -1].any()
    engine.forget("park")


def small():
    """What `fn: tests.live.test_service:small` names."""
    made, params = _network()
    return params["model"], made.model.fn


def test_a_function_is_served_and_run_over_videos_as_a_file_is(tmp_path, capfd):
    clip = write_clip(tmp_path / "clip.mp4", frames=5)
    where = "tests.live.test_service:small"
    config = tmp_path / "cameras.yaml"
    config.write_text(f"""
network: {{fn: "{where}", size: [32, 32]}}
cameras: [{{name: one, address: {clip}, pace: false, drop: wait}}]
lines: {{path: {tmp_path / "out.jsonl"}}}
""")
    assert cli.main(["serve", str(config)]) == 0
    served = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    out = str(tmp_path / "rows")
    command = ["batch", str(clip), "--fn", where, "--size", "32", "32", "--out", out]
    assert cli.main([*command, "--workers", "1"]) == 0
    rows = (tmp_path / "rows" / "clip.mp4.jsonl").read_text().splitlines()
    assert [json.loads(row)["output"] for row in rows] == [row["output"] for row in served]
    assert "clip.mp4: 5 rows" in capfd.readouterr().err
    assert cli.main([*command, "--threshold", "0.5"]) == 1
    assert "was begun with threshold None, not 0.5" in capfd.readouterr().err
    assert cli.main(["batch", str(clip), "--out", out]) == 1
    assert "one of `onnx` (='') and `fn` (='') must be given" in capfd.readouterr().err
    config.write_text(config.read_text().replace("fn:", "preset: yolox, onnx: a.onnx, fn:"))
    assert cli.main(["serve", str(config)]) == 1
    assert "one of `onnx` and `fn` must be given at $.network" in capfd.readouterr().err


CONFIG = """
network: {{onnx: {onnx}, threshold: 0.02, block: 4}}
cameras:
  - {{name: one, address: {clip}, pace: false, drop: wait}}
  - {{name: two, address: {clip}, pace: false, drop: wait, reset_every: 5}}
workers: 2
lines: {{path: {out}}}
api: {{port: 0}}
"""


def test_the_command_serves_until_its_files_end(tmp_path, capfd):
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "small",
        [helper.make_tensor_value_info("x", kind, (1, 3, 32, 32))],
        [helper.make_tensor_value_info("y", kind, (1, 4, 32, 32))],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "net.onnx")
    write_clip(tmp_path / "clip.mp4", frames=12)
    names = {"onnx": "net.onnx", "clip": "clip.mp4", "out": "out.jsonl"}
    config = tmp_path / "cameras.yaml"
    config.write_text(CONFIG.format(**{k: tmp_path / v for k, v in names.items()}))
    assert cli.main(["serve", str(config), "--check"]) == 0
    assert not (tmp_path / "out.jsonl").exists()
    assert cli.main(["serve", str(config)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for name, resets in (("one", [0]), ("two", [0, 5, 10])):
        own = [row for row in rows if row["camera"] == name]
        assert [row["frame"] for row in own] == list(range(12))
        assert [row["frame"] for row in own if "reset" in row] == resets
        assert own[0]["share"] == 1.0
        assert {"mean", "min", "max"} <= set(own[0]["output"])
    said = capfd.readouterr().err
    assert "one: 12 answered, 0 dropped" in said
    assert "live page: http://127.0.0.1:" in said
    config.write_text(config.read_text().replace("workers", "worker"))
    assert cli.main(["serve", str(config)]) == 1
    assert "unknown field `worker` at $" in capfd.readouterr().err
