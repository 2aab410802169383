"""HTTP and web sockets: figures, frames, answers as they come, metrics, and the live page."""

import asyncio
import base64
import dataclasses
import socket
import threading
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np

from skipconv_jax.extras import required
from skipconv_jax.live import metrics
from skipconv_jax.live.fleet import Fleet
from skipconv_jax.live.guarded import PROTOCOL, Guarded
from skipconv_jax.live.service import QUANTILES, Figures, Seen, Service

with required():
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import FileResponse, Response
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect

_PAGE = Path(__file__).with_name("page")
_BACKLOG = 100  # answers that wait for a slow reader; the oldest go first
_WIDTH = 640  # pixels of a frame that is asked for, at most


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _described(figures: Figures) -> dict[str, Any]:
    """Figures as JSON; what is not known yet is null."""
    made = dataclasses.asdict(figures)
    camera = made.pop("camera")
    late = {f"p{100 * q:g}": seconds for q, seconds in zip(QUANTILES, figures.latency, strict=True)}
    return {**camera, **made, "latency": late}


def _jpeg(image: np.ndarray) -> bytes:
    height, width = image.shape[:2]
    if width > _WIDTH:
        size = (_WIDTH, max(1, round(height * _WIDTH / width)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"`image` (of shape {image.shape}) could not be encoded as JPEG.")
    return bytes(data)


def message(seen: Seen) -> bytes:
    """An answer for a web socket: its row, with the map of fired blocks as bytes in base 64."""
    row = dict(seen.row)
    if seen.fired is not None:
        levels = np.rint(np.clip(seen.fired, 0, 1) * 255).astype(np.uint8)
        row["fired"] = {
            "size": list(levels.shape),
            "data": base64.b64encode(levels.tobytes()).decode("ascii"),
        }
    return msgspec.json.encode(row)


class _Hub:
    """Readers of answers; each has a bounded queue, filled from the workers' threads."""

    def __init__(self) -> None:
        self._readers: set[tuple[asyncio.AbstractEventLoop, asyncio.Queue[bytes]]] = set()

    def __call__(self, seen: Seen) -> None:
        readers = list(self._readers)
        data = message(seen) if readers else b""
        for loop, queue in readers:
            # A loop that ended between the two has no reader any more.
            if not loop.is_closed():
                loop.call_soon_threadsafe(_offer, queue, data)

    async def serve(self, connection: WebSocket) -> None:
        """Answers, until the reader goes."""
        wanted = PROTOCOL in connection.scope.get("subprotocols", [])
        await connection.accept(PROTOCOL if wanted else None)
        queue: asyncio.Queue[bytes] = asyncio.Queue(_BACKLOG)
        reader = (asyncio.get_running_loop(), queue)
        self._readers.add(reader)
        gone = asyncio.create_task(_until_gone(connection))
        try:
            while not gone.done():
                getting = asyncio.create_task(queue.get())
                await asyncio.wait({getting, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    break
                await connection.send_text(getting.result().decode())
        except WebSocketDisconnect:
            pass  # it went while it was being answered
        finally:
            self._readers.discard(reader)
            gone.cancel()


async def _until_gone(connection: WebSocket) -> None:
    while (await connection.receive())["type"] != "websocket.disconnect":
        pass


def _offer(queue: asyncio.Queue[bytes], data: bytes) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(data)


def app(service: Service | Fleet, token: str = "") -> Guarded:
    """The application over a service.

    Args:
      service: started or not.
      token: that everything but the page needs; '' for the loopback alone.
    """
    figures, hub = metrics.registry(service), _Hub()
    service.listen(hub)

    async def found(name: str) -> Seen | None:
        # A fleet asks the worker that has it.
        return await run_in_threadpool(service.seen, name) if name in service.names else None

    async def cameras(request: Request) -> Response:
        return _json([_described(f) for f in service.figures().values()])

    async def camera(request: Request) -> Response:
        found = service.figures().get(request.path_params["name"])
        return _missing() if found is None else _json(_described(found))

    async def frame(request: Request) -> Response:
        name = request.path_params["name"]
        seen = await found(name)
        if seen is None:
            return _missing()
        data = await run_in_threadpool(_jpeg, seen.image)
        number = {"X-Frame": str(seen.row["frame"])}
        return Response(data, media_type="image/jpeg", headers=number)

    async def answer(request: Request) -> Response:
        name = request.path_params["name"]
        seen = await found(name)
        if seen is None:
            return _missing()
        return Response(message(seen), media_type="application/json")

    async def reset(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in service.names:
            return _missing()
        service.reset(name)
        return _json({"camera": name, "reset": True})

    async def outlets(request: Request) -> Response:
        return _json([outlet.status() for outlet in service.outlets])

    async def prometheus(request: Request) -> Response:
        return Response(metrics.text(figures), media_type="text/plain; version=0.0.4")

    def file(name: str, kind: str) -> Any:
        async def page(request: Request) -> Response:
            return FileResponse(_PAGE / name, media_type=kind)

        return page

    return Guarded(
        Starlette(
            routes=[
                Route("/", file("index.html", "text/html")),
                Route("/page.js", file("page.js", "text/javascript")),
                Route("/page.css", file("page.css", "text/css")),
                Route("/metrics", prometheus),
                Route("/api/outlets", outlets),
                Route("/api/cameras", cameras),
                Route("/api/cameras/{name}", camera),
                Route("/api/cameras/{name}/answer", answer),
                Route("/api/cameras/{name}/frame.jpg", frame),
                Route("/api/cameras/{name}/reset", reset, methods=["POST"]),
                WebSocketRoute("/api/answers", hub.serve),
            ]
        ),
        token,
    )


def _missing() -> Response:
    return _json({"error": "no such camera, or no answer of it yet"}, 404)


class Server:
    """The application on a thread of its own.

    Args:
      made: from `app`.
      host: to bind to.
      port: 0 takes a free one.

    Raises:
      OSError: the address can't be bound.
    """

    def __init__(self, made: Guarded, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            reason = error.strerror or "no such address"
            raise OSError(f"`api` (={host}:{port}) can't be bound: {reason}.") from error
        name = f"[{host}]" if ":" in host else host
        self.address = f"http://{name}:{self._socket.getsockname()[1]}"
        settings = uvicorn.Config(
            made,
            log_config=None,  # its own would close the handlers of everybody else
            log_level="warning",
            access_log=False,  # it would log what is asked for
            lifespan="off",
            ws="websockets-sansio",
            ws_max_size=4096,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="api", daemon=True
        )

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Ends."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(10)
        self._socket.close()
