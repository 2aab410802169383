"""HTTP, web sockets and metrics over a running service; who may ask; the page in a real browser."""

import json
import shutil
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from skipconv_jax.live import api
from skipconv_jax.live.camera import Camera
from skipconv_jax.live.capture import Connection
from skipconv_jax.live.config import ConfigError, load
from skipconv_jax.live.engine import Answer
from skipconv_jax.live.service import Service, Watch
from tests.live.conftest import missing, until

TOKEN = "a-token_of-more-than-16"


class Boxes:
    """An engine that sees one box that moves, and fires where it is."""

    def __init__(self):
        self.count = {}

    def run(self, stream, image, fresh, ignore):
        count = self.count[stream] = self.count.get(stream, -1) + 1
        x = 10 * (count % 20)
        fired = np.zeros((9, 16))
        fired[4:6, x // 20 : x // 20 + 3] = 1
        row = {"boxes": [[x, 60, x + 60, 120]], "scores": [0.9], "labels": ["car"]}
        return Answer(row, 1.0 if fresh else 0.05 + 0.002 * (count % 20), 0.1, 2.0, fired)

    def state_bytes(self, stream):
        return 1000

    def forget(self, stream):
        pass


class Pattern:
    """A camera of the tests: a gradient that moves, at 25 frames a second, without end."""

    def __init__(self):
        self.path, self.rate, self.frames = "pattern", 25, None

    def __iter__(self):
        from skipconv_jax.streaming.sources import Frame

        level = np.linspace(0, 255, 320).astype(np.uint8)
        index = 0
        while True:
            row = np.roll(level, 4 * index)
            image = np.broadcast_to(row[None, :, None], (180, 320, 3)).copy()
            image[..., 2] = 90
            yield Frame(index, image)
            index += 1


def _running(token=""):
    zones = {"gate": [(0, 0), (1, 0), (1, 1), (0, 1)]}
    streams = [
        (Camera("front", "tests.live.test_api:Pattern"), Watch(zones=zones)),
        (Camera("yard-2", "tests.live.test_api:Pattern"), Watch()),
        (Camera("lost", "rtsp://me:secret@127.0.0.1:1/x", Connection(open_seconds=1)), Watch()),
    ]
    service = Service(Boxes(), streams, workers=2)
    server = api.Server(api.app(service, token))
    service.start()
    server.start()
    until(lambda: all(service.seen(name) for name in ("front", "yard-2")))
    return service, server


@pytest.fixture(scope="module")
def running():
    service, server = _running()
    yield service, server.address
    server.stop()
    service.stop()


@pytest.fixture(scope="module")
def secured():
    service, server = _running(TOKEN)
    yield server.address
    server.stop()
    service.stop()


def _get(address, path, method="GET", **headers):
    """Status, headers and body."""
    request = urllib.request.Request(address + path, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_figures_frames_and_resets(running):
    service, address = running
    _, headers, body = _get(address, "/api/cameras")
    cameras = {camera["name"]: camera for camera in json.loads(body)}
    assert headers["Content-Type"] == "application/json"
    assert list(cameras) == ["front", "yard-2", "lost"]
    front = cameras["front"]
    assert front["state"] == "live"
    assert front["answered"] > 0
    assert 0 < front["latency"]["p50"] < 5
    assert front["costs"][0] == 1.0
    assert cameras["lost"]["latency"]["p50"] is None
    assert "secret" not in body.decode()
    assert json.loads(_get(address, "/api/cameras/front")[2])["name"] == "front"
    status, headers, data = _get(address, "/api/cameras/front/frame.jpg")
    assert status == 200
    assert int(headers["X-Frame"]) >= 0
    assert cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape == (180, 320, 3)
    row = json.loads(_get(address, "/api/cameras/front/answer")[2])
    assert row["zones"] == [["gate"]]
    assert row["fired"]["size"] == [9, 16]
    before = service.figures()["front"].resets
    assert _get(address, "/api/cameras/front/reset", "POST")[0] == 200
    until(lambda: service.figures()["front"].resets > before)
    for path in ("/api/cameras/none", "/api/cameras/none/frame.jpg", "/api/cameras/lost/answer"):
        assert _get(address, path)[0] == 404
    assert _get(address, "/api/cameras/none/reset", "POST")[0] == 404
    assert _get(address, "/api/cameras/front/reset")[0] == 405
    assert _get(address, "/page/../api.py")[0] == 404


def test_metrics(running):
    service, address = running
    until(lambda: service.figures()["front"].camera.fps > 0)
    text = _get(address, "/metrics")[2].decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    for name in ("frames_total", "answers_total", "state_bytes", "fps", "mac_share", "live"):
        assert float(values[f'skipconv_{name}{{camera="front"}}']) > 0, name
    assert float(values['skipconv_live{camera="lost"}']) == 0
    assert float(values['skipconv_latency_seconds{camera="front",quantile="0.99"}']) > 0
    for name in ("dropped", "resets", "reconnects", "stalls", "damaged", "failed", "thinned"):
        assert f'skipconv_{name}_total{{camera="yard-2"}}' in values


def test_answers_as_they_come(running):
    _, address = running
    with connect(address.replace("http", "ws") + "/api/answers") as socket:
        rows = [json.loads(socket.recv(5)) for _ in range(12)]
    assert {row["camera"] for row in rows} == {"front", "yard-2"}
    own = [row["frame"] for row in rows if row["camera"] == "front"]
    assert own == sorted(own)
    assert len(rows[0]["fired"]["data"]) == 192


def test_only_this_machine_and_this_page_may_ask_without_a_token(running):
    _, address = running
    port = address.rpartition(":")[2]
    assert _get(address, "/api/cameras", Host=f"evil.example:{port}")[0] == 400
    assert _get(address, "/", Host="evil.example")[0] == 400
    assert _get(address, "/api/cameras", Host=f"localhost:{port}")[0] == 200
    assert _get(address, "/api/cameras", Origin="http://evil.example")[0] == 403
    assert _get(address, "/api/cameras", Origin=address)[0] == 200
    url = address.replace("http", "ws") + "/api/answers"
    with pytest.raises(InvalidStatus), connect(url, origin="http://evil.example"):
        pass


def test_a_token_is_needed_for_everything_but_the_page(secured):
    right, wrong = f"Bearer {TOKEN}", f"Bearer {TOKEN}x"
    for path in ("/api/cameras", "/metrics", "/api/outlets", "/api/cameras/front/frame.jpg"):
        assert _get(secured, path)[0] == 401
        assert _get(secured, path, Authorization=wrong)[0] == 401
        assert _get(secured, path, Authorization=right, Host="camera.lan")[0] == 200
    assert _get(secured, "/api/cameras/front/reset", "POST")[0] == 401
    for path in ("/", "/page.js", "/page.css"):
        status, headers, body = _get(secured, path, Host="camera.lan")
        assert status == 200
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert b"front" not in body
    url = secured.replace("http", "ws") + "/api/answers"
    with connect(url, subprotocols=["skipconv", f"token.{TOKEN}"]) as socket:
        assert socket.subprotocol == "skipconv"
        assert json.loads(socket.recv(5))["share"] > 0
    for protocols in (["skipconv"], ["skipconv", "token.wrong"]):
        with pytest.raises((InvalidStatus, ConnectionClosed)), connect(url, subprotocols=protocols):
            pass


@pytest.mark.parametrize(
    ("api_part", "said"),
    [
        ("{host: 0.0.0.0}", r"`host` \(='0.0.0.0'\) must be of the loopback, or .* needs a"),
        ("{token: short}", r"matching regex .* at \$.api.token"),
        ("{port: 70000}", r"<= 65535 at \$.api.port"),
    ],
)
def test_other_hosts_need_a_token(tmp_path, api_part, said):
    path = tmp_path / "cameras.yaml"
    text = "network: {onnx: a.onnx}\ncameras: [{name: a, address: a.mp4}]\napi: "
    path.write_text(text + api_part)
    with pytest.raises(ConfigError, match=said):
        load(path)
    path.write_text(text + "{host: 0.0.0.0, token: '${T}'}")
    assert load(path, {"T": TOKEN}).api.token == TOKEN


def test_a_taken_port_is_said(running):
    service, address = running
    with pytest.raises(OSError, match="can't be bound: Address already in use"):
        api.Server(api.app(service), port=int(address.rpartition(":")[2]))


def _browser():
    if not shutil.which("chromium"):
        missing("chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    return sync_api.sync_playwright()


def test_the_page_shows_cameras_boxes_blocks_and_costs(secured, tmp_path):
    with _browser() as playwright:
        options = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox"]}
        browser = playwright.chromium.launch(**options)
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{secured}/#{TOKEN}")
        # Looked at from here: the page's own rules let nothing in it evaluate text.
        page.wait_for_selector('article[data-camera="front"] .state.live')
        until(
            lambda: page.evaluate(
                "document.getElementById('connection').textContent == 'connected'"
            ),
            30,
        )
        until(
            lambda: page.evaluate(
                "cards.get('front').costs.length > 40 && Boolean(cards.get('front').image)"
            ),
            30,
        )
        text = page.inner_text('article[data-camera="front"]')
        lost = page.inner_text('article[data-camera="lost"] .state')
        colours = page.evaluate(
            """() => { const canvas = document.querySelector('article .picture');
            const { width, height } = canvas;
            const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
            let box = 0, fired = 0;
            for (let k = 0; k < data.length; k += 4) {
              box += data[k] == 66 && data[k + 1] == 133 && data[k + 2] == 244;
              fired += data[k] > data[k + 1] + 40 && data[k] > data[k + 2] + 40; }
            return { box, fired, size: [canvas.width, canvas.height] }; }"""
        )
        bars = page.evaluate(
            """() => { const canvas = document.querySelector('article .cost');
            const { width, height } = canvas;
            const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
            return data.filter((v, k) => k % 4 == 3 && v).length; }"""
        )
        page.screenshot(path=str(tmp_path / "page.png"))
        page.goto("about:blank")
        page.goto(f"{secured}/#not-the-token-it-is")
        until(
            lambda: page.evaluate(
                "document.getElementById('connection').textContent.includes('token')"
            ),
            30,
        )
        refused = list(said)
        browser.close()
    assert "fps" in text
    assert "% of the dense cost" in text
    assert "resets" in text
    assert "127.0.0.1:1" in lost
    assert "secret" not in lost
    assert colours["size"] == [640, 360]
    assert colours["box"] > 500, "the box and its label"
    assert colours["fired"] > 1000, "the blocks that fired"
    assert bars > 100
    # Of the second visit alone, which was refused.
    assert all("401" in line or "WebSocket" in line for line in refused), refused
