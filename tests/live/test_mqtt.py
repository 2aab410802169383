"""Answers over a real broker (Mosquitto), which is killed and comes back."""

import contextlib
import os
import shutil
import socket
import subprocess
import threading

import paho.mqtt.client as paho
import pytest

from skipconv_jax.live.mqtt import Broker
from skipconv_jax.live.outlets import Outlet
from tests.live.conftest import free_port, missing, until

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextlib.contextmanager
def _broker(port, folder):
    """Mosquitto with one user, until the end of the block."""
    if MOSQUITTO is None:
        missing("mosquitto")
    passwords = folder / "passwords"
    if not passwords.exists():
        command = ["mosquitto_passwd", "-b", "-c", str(passwords), "me", "secret"]
        subprocess.run(command, check=True, capture_output=True)
        passwords.chmod(0o644)
        folder.chmod(0o755)
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\npassword_file {passwords}\nuser root\n")
    process = subprocess.Popen([MOSQUITTO, "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        until(lambda: _listens(port))
        yield process
    finally:
        process.kill()
        process.wait()


def _listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Reader:
    """Subscribes to everything, and remembers it."""

    def __init__(self, port):
        self.got, self.ready = [], threading.Event()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.username_pw_set("me", "secret")
        self.client.on_connect = lambda *_: self.client.subscribe("cams/#", qos=1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = lambda c, d, m: self.got.append((m.topic, m.payload))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.ready.wait(5)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def test_a_broker_that_goes_away_costs_no_answer_that_fits_the_queue(tmp_path):
    port = free_port()
    broker = Broker("127.0.0.1", port, "cams", "me", "secret", seconds=1)
    outlet = Outlet("mqtt", broker, queue=10, retry=0.05)
    with _broker(port, tmp_path) as process:
        outlet.put("door", b'{"frame":0}\n')
        until(lambda: outlet.status().written == 1)
        reader = Reader(port)
        outlet.put("door", b'{"frame":1}\n')
        outlet.put("yard", b'{"frame":2}\n')
        until(lambda: len(reader.got) == 3)
        assert reader.got == [
            ("cams/status", b"online"),
            ("cams/answers/door", b'{"frame":1}'),
            ("cams/answers/yard", b'{"frame":2}'),
        ]
        reader.close()
        process.kill()
        until(lambda: not broker.connected)
    for number in range(3, 18):
        outlet.put("door", b'{"frame":%d}\n' % number)
    until(lambda: outlet.status().reason)
    status = outlet.status()
    assert "no connection" in status.reason
    assert (status.written, status.lost, status.waiting) == (3, 5, 10)
    with _broker(port, tmp_path):
        reader = Reader(port)
        until(lambda: outlet.status().written == 13, seconds=20)
        until(lambda: [payload for topic, payload in reader.got if "answers" in topic][9:])
        outlet.close()
        until(lambda: ("cams/status", b"offline") in reader.got)
        answers = [payload for topic, payload in reader.got if "answers" in topic]
        reader.close()
    assert answers == [b'{"frame":%d}' % number for number in range(8, 18)]
    assert outlet.status().lost == 5


def test_a_wrong_password_is_no_connection(tmp_path):
    port = free_port()
    with _broker(port, tmp_path):
        broker = Broker("127.0.0.1", port, "cams", "me", "wrong")
        until(lambda: "Not authorized" in broker.refused or "not authorised" in broker.refused)
        with pytest.raises(OSError, match="refuses"):
            broker.write("door", b"{}")
        broker.close()
