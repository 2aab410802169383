"""Live cameras through one network: `skipconv serve CONFIG`, a YAML or TOML file.

The file names the network, the cameras and where answers go; docs/guides/live.md has all of it.
"""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence

from skipconv_jax.extras import MissingExtra, require, required


def main(arguments: Sequence[str]) -> int:
    """Serves until it is told to stop or every camera is over; returns the exit code."""
    parser = argparse.ArgumentParser(
        "skipconv serve", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", help="YAML or TOML file")
    parser.add_argument("--check", action="store_true", help="read the file and stop")
    parser.add_argument("--verbose", action="store_true", help="log what cameras do")
    given = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if given.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        return _serve(given.config, given.check)
    except (ValueError, OSError, MissingExtra) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _serve(path: str, check: bool) -> int:
    # First of all: what is missing is this command's extra, whatever else it would bring.
    require("starlette", "uvicorn", "prometheus_client", "paho")
    with required():
        from skipconv_jax.commands.evaluate import with_gates
        from skipconv_jax.live import config as files
        from skipconv_jax.live import serve
    config = files.load(path)
    if check:
        print(f"{path}: {len(config.cameras)} camera(s), nothing wrong", file=sys.stderr)
        return 0
    serve.one_thread_each()
    engine = serve.plan_engine(config, with_gates, fired=config.api is not None)
    service = serve.service(config, engine)
    server = None
    if config.api:
        with required():
            from skipconv_jax.live import api
        made = api.app(service, config.api.token)
        server = api.Server(made, config.api.host, config.api.port)
    ended = threading.Event()
    before = {n: signal.signal(n, lambda *_: ended.set()) for n in (signal.SIGINT, signal.SIGTERM)}
    service.start()
    if server:
        server.start()
        print(f"live page: {server.address}", file=sys.stderr, flush=True)
    print(f"{len(config.cameras)} camera(s) on {engine.why}", file=sys.stderr, flush=True)
    try:
        while not ended.wait(0.2) and not service.wait(0.0):
            pass
    finally:
        if server:
            server.stop()
        service.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    for name, figures in service.figures().items():
        source = figures.camera
        share = figures.macs / max(figures.answered, 1)
        print(
            f"{name}: {figures.answered} answered, {source.dropped} dropped, {source.thinned} "
            f"thinned, {source.damaged} damaged, {figures.failed} failed, {figures.resets} resets, "
            f"{source.reconnects} reconnects, {share:.1%} of the dense cost",
            file=sys.stderr,
        )
    return 0
