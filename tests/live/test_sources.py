"""Cameras of every kind, over real servers on the loopback: what comes, what is lost."""

import http.server
import logging
import os
import subprocess
import sys
import threading
import time

import av
import cv2
import numpy as np
import pytest

from skipconv_jax.live.address import Kind, kind, shown
from skipconv_jax.live.camera import Camera, Rate, Retry
from skipconv_jax.live.capture import CaptureError, Connection, Counts, Shot, Stalled, capture
from skipconv_jax.live.inbox import Inbox
from tests.live.conftest import free_port, until, write_clip

FAST = Retry(first=0.05, most=0.2)
QUICK = Connection(open_seconds=3, stall_seconds=1)


class Collected:
    """A running camera and what it brought."""

    def __init__(self, address, connection=QUICK, **kwargs):
        self.shots = []
        self.camera = Camera("test", str(address), connection, Inbox(64), FAST, **kwargs)

    def __enter__(self):
        self.camera.start()
        return self

    def __exit__(self, *_):
        assert self.camera.stop()

    def shot(self, true=lambda shot: True, seconds=15):
        """The next shot for which something is true."""

        def found():
            while (shot := self.camera.inbox.take()) is not None:
                self.shots.append(shot)
                if true(shot):
                    return shot
            return None

        return until(found, seconds)


@pytest.mark.parametrize(
    ("address", "what", "said"),
    [
        ("rtsp://me:pw@cam.lan:554/live?key=1", Kind.RTSP, "rtsp://cam.lan:554/..."),
        ("RTSPS://cam/", Kind.RTSP, "rtsps://cam"),
        ("http://10.0.0.1/user=admin_password=x.mjpg", Kind.HTTP, "http://10.0.0.1/..."),
        ("https://a:b%40@[fe80::1]:8443/", Kind.HTTP, "https://[fe80::1]:8443"),
        ("/dev/video0", Kind.V4L2, "/dev/video0"),
        ("-", Kind.STDIN, "-"),
        ("videos/a.mp4", Kind.FRAMES, "videos/a.mp4"),
        ("rtsp://u:p@bad:port/x", Kind.RTSP, "(an address that can't be read)"),
    ],
)
def test_an_address_says_what_it_is_and_never_its_secrets(address, what, said):
    assert kind(address) is what
    assert shown(address) == said


def test_other_schemes_are_refused_without_their_secrets():
    with pytest.raises(ValueError, match=r"`address` \(=ftp://cam/...\) must begin with") as caught:
        kind("ftp://me:secret@cam/x")
    assert "secret" not in str(caught.value)


def test_delays_double_to_a_bound():
    retry = Retry(first=0.5, most=30, jitter=0.2)
    assert [retry.delay(k, 0.0) for k in (0, 1, 2, 10, 2000)] == [0.5, 1, 2, 30, 30]
    assert retry.delay(0, 0.999) == pytest.approx(0.4, abs=1e-3)


def test_a_rate_is_of_the_last_seconds():
    rate = Rate(2.0)
    for k in range(100):
        rate.tick(k / 10)
    assert rate.value(9.9) == pytest.approx(10, rel=0.05)
    assert rate.value(29.9) < 0.1


def test_rtsp_with_credentials_that_nobody_sees(rtsp, clip, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    port = free_port()
    with rtsp(port, "--user", "me:topsecret", f"cam={clip}"):
        with Collected(f"rtsp://me:topsecret@127.0.0.1:{port}/cam") as seen:
            first = seen.shot()
            pixels = first.pixels()
            times = [seen.shot() for _ in range(3)]
        with Collected(f"rtsp://me:wrongsecret@127.0.0.1:{port}/cam") as refused:
            until(lambda: "401" in refused.camera.status().reason)
            status = refused.camera.status()
    assert first.event == "connected"
    assert pixels.shape == (96, 128, 3)
    assert pixels.std() > 10
    assert first.thumbnail.shape == (36, 64, 3)
    steps = np.diff([shot.pts for shot in times])
    np.testing.assert_allclose(steps, 0.1, atol=1e-3)
    assert abs(first.time - time.time()) < 60
    assert status.state in ("waiting", "connecting")
    assert status.size is None
    said = repr(status) + repr(seen.camera.status()) + caplog.text + "".join(capfd.readouterr())
    assert "secret" not in said
    assert f"127.0.0.1:{port}" in said


def test_a_server_that_is_killed_and_comes_back(rtsp, clip):
    port = free_port()
    with Collected(f"rtsp://127.0.0.1:{port}/cam") as seen:
        until(lambda: "refused" in seen.camera.status().reason)
        with rtsp(port, f"cam={clip}") as server:
            assert seen.shot().event == "connected"
            assert until(lambda: seen.camera.status().state == "live")
            server.kill()
            until(lambda: seen.camera.status().state == "waiting")
        with rtsp(port, f"cam={clip}"):
            again = seen.shot(lambda shot: shot.event)
            status = seen.camera.status()
    assert again.event == "reconnected"
    assert status.reconnects == 1
    numbers = [shot.number for shot in seen.shots]
    assert numbers == sorted(set(numbers)), "numbers go on over connections"
    assert seen.camera.status().state == "stopped"


def test_the_same_failure_is_logged_once(caplog):
    port = free_port()
    with Collected(f"http://127.0.0.1:{port}/video") as seen:
        until(lambda: [r for r in caplog.records if r.levelname == "WARNING"])
        until(lambda: seen.camera.status().reason.endswith("again in 0.2 s"))
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1


def test_a_stream_that_changes_its_size(rtsp, tmp_path):
    write_clip(tmp_path / "part0.h264", form="h264", frames=10)
    write_clip(tmp_path / "part1.h264", form="h264", frames=10, size=(64, 96))
    port = free_port()
    with (
        rtsp(port, f"cam={tmp_path}/part%d.h264"),
        Collected(f"rtsp://127.0.0.1:{port}/cam") as seen,
    ):
        changed = seen.shot(lambda shot: "size changed" in shot.event)
    sizes = [shot.pixels().shape[:2] for shot in seen.shots]
    assert sizes[-1] != sizes[0]
    assert set(sizes) == {(96, 128), (64, 96)}
    assert "from 128x96 to 96x64" in changed.event or "from 96x64 to 128x96" in changed.event


def _damaged(path, clip, which=(7,)):
    """The clip with the slices of some frames flipped."""
    data = bytearray(clip.read_bytes())
    starts = [k for k in range(len(data) - 4) if data[k : k + 3] == b"\0\0\1"]
    slices = [k for k in starts if data[k + 3] & 31 in (1, 5)]
    for number in which:
        start = slices[number]
        after = next((k for k in starts if k > start), len(data) - 1)
        for k in range(start + 8 + (after - start) // 3, after - 2):
            data[k] ^= 0x5A
    path.write_bytes(data)
    return path


def test_damaged_packets_are_left_out_up_to_the_next_key_frame(rtsp, clip, tmp_path):
    path = _damaged(tmp_path / "damaged.h264", clip)
    port = free_port()
    with rtsp(port, f"cam={path}"), Collected(f"rtsp://127.0.0.1:{port}/cam") as seen:
        seen.shot()
        after = seen.shot(lambda shot: "damaged" in shot.event)
        counts = seen.camera.status()
    # Frame 7 of 20 and those that depend on it, 8 and 9: every frame shown is one of the clip's.
    assert counts.damaged >= 3
    assert counts.damaged % 3 == 0
    with av.open(str(clip)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for shot in (*seen.shots[:10], after):
        assert min(np.abs(shot.pixels().astype(int) - w).max() for w in whole) == 0
    assert np.array_equal(after.pixels(), whole[10]), "the next key frame"


@pytest.mark.parametrize("slices", [1, 4])
def test_damage_can_be_kept(tmp_path, slices):
    clip = write_clip(tmp_path / "clip.h264", form="h264", slices=slices)
    path = _damaged(tmp_path / "damaged.h264", clip, [7 * slices + slices // 2])
    frames = []
    for damaged in ("drop", "keep"):
        fifo = tmp_path / f"pipe_{damaged}"
        os.mkfifo(fifo)
        writer = threading.Thread(target=fifo.write_bytes, args=(path.read_bytes(),))
        writer.start()
        connection = Connection(format="h264", damaged=damaged, stall_seconds=3)
        frames.append(len(list(capture(str(fifo), connection, Counts(), threading.Event()))))
        writer.join()
    assert frames == [17, 20]


class Mjpeg(http.server.BaseHTTPRequestHandler):
    """Sends so many JPEGs, one of which is no picture, and then is silent or goes."""

    pictures = 6
    bad = -1
    then = "go"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for number in range(self.pictures):
            level = np.full((48, 64, 3), 40 + 20 * number, np.uint8)
            data = cv2.imencode(".jpg", level)[1].tobytes()
            if number == self.bad:
                data = data[:20] + bytes(200) + data[-2:]
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            self.wfile.write(head.encode() + data + b"\r\n")
            time.sleep(0.02)
        if self.then == "silence":
            self.server.ended.wait(10)

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def mjpeg():
    """Starts servers of MJPEG with other habits: `mjpeg(then='silence')` gives an address."""
    servers = []

    def start(**habits):
        handler = type("Handler", (Mjpeg,), habits)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.ended = threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}/video"

    yield start
    for server, thread in servers:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_mjpeg_over_http_is_decoded_on_demand(mjpeg):
    with Collected(mjpeg(bad=2)) as seen:
        shots = [seen.shot() for _ in range(4)]
        # The server goes after six pictures: the camera comes back for more.
        again = seen.shot(lambda shot: shot.event == "reconnected")
    levels = [round(float(shots[k].pixels().mean())) for k in (0, 1, 3)]
    np.testing.assert_allclose(levels, [40, 60, 100], atol=2)
    with pytest.raises(CaptureError, match="damaged picture"):
        shots[2].pixels()
    assert np.isclose(again.pixels().mean(), 40, atol=2)


def test_a_stream_that_falls_silent_is_given_up_and_opened_again(mjpeg):
    address = mjpeg(then="silence", pictures=3)
    with Collected(address, Connection(stall_seconds=0.3)) as seen:
        again = seen.shot(lambda shot: "reconnected" in shot.event)
        status = seen.camera.status()
    assert again.number >= 2
    assert status.stalls >= 1


def test_a_source_whose_thread_hangs_is_shown_as_stalled():
    ended = threading.Event()

    def hangs(address, connection, counts, stop):
        yield from capture(address, connection, counts, stop)
        ended.wait(10)

    folder = Connection(stall_seconds=0.2, pace=False)
    with Collected("tests.live.test_sources:Moving", folder, open_=hangs) as seen:
        seen.shot()
        until(lambda: seen.camera.status().state == "stalled")
        assert "no frame for" in seen.camera.status().reason
        ended.set()


def test_a_connection_that_never_brings_a_whole_frame_is_shown_as_stalled():
    def waits(address, connection, counts, stop):
        stop.wait(10)
        yield from ()

    with Collected("none", Connection(open_seconds=0.1, stall_seconds=0.1), open_=waits) as seen:
        assert seen.camera.status().state == "connecting"
        until(lambda: seen.camera.status().state == "stalled")


class Moving:
    """A source of the user's: five frames, the third lost."""

    def __init__(self):
        self.path, self.rate, self.frames = "moving", 50, None

    def __iter__(self):
        from skipconv_jax.streaming.sources import Frame

        for index in range(5):
            image = None if index == 2 else np.full((32, 32, 3), 10 * index, np.uint8)
            yield Frame(index, image, "lost" if index == 2 else "")


def test_frames_of_a_file_end_or_loop():
    with Collected("tests.live.test_sources:Moving") as seen:
        until(lambda: seen.camera.status().state == "ended")
        shots = [seen.shot() for _ in range(4)]
        assert seen.camera.over
    assert [shot.event for shot in shots] == ["connected", "", "lost", ""]
    assert seen.camera.status().damaged == 1
    gaps = np.diff([shot.arrived for shot in shots])
    assert gaps.sum() > 0.05, "at the source's own rate"
    with Collected("tests.live.test_sources:Moving", Connection(loop=True, pace=False)) as seen:
        seen.shot(lambda shot: "looped" in shot.event)


def test_a_missing_file_is_said_and_waited_for(tmp_path):
    path = tmp_path / "clip.mp4"
    with Collected(path) as seen:
        until(lambda: "must be a video file" in seen.camera.status().reason)
        write_clip(tmp_path / "written.mp4", frames=3)
        (tmp_path / "written.mp4").rename(path)
        assert seen.shot().pixels().shape == (96, 128, 3)


def test_a_named_pipe_is_waited_for_read_and_read_again(tmp_path, clip):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    assert kind(str(fifo)) is Kind.PIPE
    with Collected(fifo, Connection(format="h264", stall_seconds=5)) as seen:
        for event in ("connected", "reconnected"):
            fifo.write_bytes(clip.read_bytes())
            assert seen.shot().event == event
            seen.shot(lambda shot: shot.number % 20 == 19)
    assert [shot.number for shot in seen.shots] == list(range(40))


def test_a_pipe_nobody_writes_to_stalls(tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    connection = Connection(format="h264", stall_seconds=0.3)
    with pytest.raises(Stalled, match=r"no frame for 0\.3 s"):
        list(capture(str(fifo), connection, Counts(), threading.Event()))


def test_stdin(clip, repository):
    code = (
        "import threading\n"
        "from skipconv_jax.live.capture import Connection, Counts, capture\n"
        "shots = list(capture('-', Connection(format='h264'), Counts(), threading.Event()))\n"
        "print(len(shots), shots[0].pixels().shape)"
    )
    environment = os.environ | {"PYTHONPATH": str(repository)}
    with clip.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=file,
            env=environment,
            capture_output=True,
            text=True,
        )
    assert done.stdout == "20 (96, 128, 3)\n", done.stderr[-2000:]


def test_a_list_of_other_addresses_is_no_camera(tmp_path, mjpeg):
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"

    def do_GET(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/vnd.apple.mpegurl")
        handler.end_headers()
        handler.wfile.write(playlist)

    with pytest.raises(CaptureError, match=r"can.t open http://127\.0\.0\.1"):
        list(capture(mjpeg(do_GET=do_GET), QUICK, Counts(), threading.Event()))


def test_a_rate_leaves_frames_out_evenly_and_loses_no_event():
    camera = Camera("test", "none", inbox=Inbox(64), rate=5, open_=_tenth_seconds)
    camera.start()
    until(lambda: camera.status().state == "ended")
    shots = list(iter(camera.inbox.take, None))
    assert [shot.number for shot in shots] == [0, 2, 4, 6, 8]
    assert [shot.event for shot in shots] == ["connected", "", "third", "", ""]
    status = camera.status()
    assert (status.frames, status.thinned, status.dropped) == (10, 5, 0)
    assert camera.stop()


def _tenth_seconds(address, connection, counts, stop):
    for number in range(10):
        event = "third" if number == 3 else ""
        counts.frames += 1
        yield Shot(number, 0.0, 100 + number / 10, None, event, lambda: np.zeros((2, 2, 3)))
