"""Answers over MQTT, each kept until the broker has it."""

import errno
import threading
from typing import Any

from skipconv_jax.extras import required

with required():
    import paho.mqtt.client as paho


class Broker:
    """Publishes to `TOPIC/answers/CAMERA`, with quality of service 1: at least once.

    `TOPIC/status` is `online`, retained, and `offline` when the service or its connection ends.
    While there is no connection, `write` raises and the answers wait in their outlet.

    Args:
      host: of the broker.
      port: of it.
      topic: before the camera's name.
      user: '' for none.
      password: of the user.
      tls: with the system's certificates.
      seconds: the broker has to confirm an answer.
    """

    def __init__(
        self,
        host: str,
        port: int = 1883,
        topic: str = "skipconv",
        user: str = "",
        password: str = "",
        tls: bool = False,
        seconds: float = 5.0,
    ) -> None:
        self._topic, self._seconds = topic, seconds
        self._pending: tuple[bytes, Any] | None = None
        self._connected = threading.Event()
        self.refused = ""  # why the broker does not let us in
        client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        if user:
            client.username_pw_set(user, password or None)
        if tls:
            client.tls_set()
        client.will_set(f"{topic}/status", "offline", qos=1, retain=True)
        client.reconnect_delay_set(1, 30)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.connect_async(host, port, keepalive=20)
        client.loop_start()
        self._client = client

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, more: Any) -> None:
        self.refused = str(reason) if reason.is_failure else ""
        if not reason.is_failure:
            client.publish(f"{self._topic}/status", "online", qos=1, retain=True)
            self._connected.set()

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: Any, more: Any) -> None:
        self._connected.clear()

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._connected.is_set()

    def write(self, camera: str, line: bytes) -> None:
        """See `outlets.Writer`."""
        if not self._connected.is_set():
            refused = f"the broker refuses: {self.refused}" if self.refused else ""
            raise OSError(errno.ENOTCONN, refused or "no connection to the broker")
        # One that was not confirmed is with the client still, which sends it again by itself.
        if self._pending is None or self._pending[0] is not line:
            topic = f"{self._topic}/answers/{camera}"
            self._pending = line, self._client.publish(topic, line.rstrip(b"\n"), qos=1)
        info = self._pending[1]
        try:
            info.wait_for_publish(self._seconds)
        except (RuntimeError, ValueError) as error:
            self._pending = None
            raise OSError(errno.ECONNRESET, "the broker's connection broke") from error
        if not info.is_published():
            raise OSError(errno.ETIMEDOUT, "the broker does not confirm")
        self._pending = None

    def close(self) -> None:
        """Says that it goes, and goes."""
        if self._connected.is_set():
            said = self._client.publish(f"{self._topic}/status", "offline", qos=1, retain=True)
            said.wait_for_publish(self._seconds)
        self._client.disconnect()
        self._client.loop_stop()
