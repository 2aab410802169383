"""Who may ask the service over HTTP: hosts, origins and the token, before anything is answered."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

App = Callable[[Any, Any, Any], Awaitable[None]]
OPEN = ("/", "/page.js", "/page.css")  # the page itself holds no figures
PROTOCOL = "skipconv"  # of web sockets
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Guarded:
    """An application behind these rules.

    - With a token, everything but the page needs it: `Authorization: Bearer TOKEN`, or, where a
      browser can't send that, the web socket's protocols `skipconv, token.TOKEN`.
    - Without one the service is for this machine: the `Host` must be of the loopback, so that no
      page of another site reaches it under a name of its own (DNS rebinding).
    - A request that says which page it comes from must come from ours.
    """

    def __init__(self, app: App, token: str = "") -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        status = self._refused(scope, headers)
        if not status:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4000 + status})
        else:
            body = {400: b"no such host", 401: b"a token is needed", 403: b"another origin"}[status]
            start = {"type": "http.response.start", "status": status, "headers": _HEADERS}
            await send(start)
            await send({"type": "http.response.body", "body": body + b"\n"})

    def _refused(self, scope: Any, headers: dict[str, str]) -> int:
        host = headers.get("host", "")
        if not self._token and urlsplit(f"//{host}").hostname not in LOOPBACK:
            return 400
        origin = headers.get("origin", "")
        if origin and urlsplit(origin).netloc != host:
            return 403
        if not self._token or scope["path"] in OPEN:
            return 0
        given = headers.get("authorization", "").removeprefix("Bearer ")
        protocols = [part.strip() for part in headers.get("sec-websocket-protocol", "").split(",")]
        offered = [given, *(p.removeprefix("token.") for p in protocols if p != PROTOCOL)]
        # All are compared, in constant time: how long it takes says nothing of the token.
        right = [hmac.compare_digest(o.encode(), self._token.encode()) for o in offered]
        return 0 if any(right) else 401


def _with_headers(send: Any) -> Any:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_HEADERS]
        await send(message)

    return sending
