"""Live cameras through one network: `skipconv serve CONFIG`, a YAML or TOML file.

The file names the network, the cameras and where answers go; docs/guides/live.md has all of it.
"""

import argparse
import contextlib
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from skipconv_jax.extras import MissingExtra, require, required


def main(arguments: Sequence[str]) -> int:
    """Serves until it is told to stop or every camera is over; returns the exit code."""
    parser = argparse.ArgumentParser(
        "skipconv serve", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", help="YAML or TOML file")
    parser.add_argument("--check", action="store_true", help="read the file and stop")
    parser.add_argument(
        "--processes", type=int, default=0,
        help="spread the cameras over so many processes; 0 runs them in this one",
    )  # fmt: skip
    parser.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS",
        help="processes are actors of a Ray cluster, by default one a core; without an address\n"
        "one is started here",
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="log what cameras do")
    given = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if given.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        return _serve(given)
    except (ValueError, OSError, MissingExtra) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def make_engine(network: Any) -> Any:
    """The network, in a worker process."""
    with required():
        from skipconv_jax.commands.evaluate import with_gates
        from skipconv_jax.live import serve
    serve.one_thread_each()
    return serve.network_engine(network, with_gates, fired=False)


def _serve(given: argparse.Namespace) -> int:
    # First of all: what is missing is this command's extra, whatever else it would bring.
    require("starlette", "uvicorn", "prometheus_client", "paho")
    require(*(["ray"] if given.ray is not None else []))
    with required():
        from skipconv_jax.live import config as files
    config = files.load(given.config)
    if given.processes < 0:
        raise ValueError(f"`processes` (={given.processes}) must be 0 or more.")
    if given.check:
        count = len(config.cameras)
        print(f"{given.config}: {count} camera(s), nothing wrong", file=sys.stderr)
        return 0
    with contextlib.ExitStack() as stack:
        service, where = _service(given, config, stack)
        _run(service, config, where)
    return 0


def _service(
    given: argparse.Namespace, config: Any, stack: contextlib.ExitStack
) -> tuple[Any, str]:
    """What serves the cameras, and where."""
    with required():
        from skipconv_jax.commands.evaluate import with_gates
        from skipconv_jax.live import serve
        from skipconv_jax.live.workers import Local
    if given.ray is None and not given.processes:
        serve.one_thread_each()
        engine = serve.plan_engine(config, with_gates, fired=config.api is not None)
        return serve.service(config, engine), engine.why
    made = functools.partial(make_engine, config.network)
    if given.ray is None:
        where = f"{given.processes} processes"
        return serve.fleet(config, made, Local, given.processes), where
    with required():
        from skipconv_jax.live.on_ray import OnRay, cluster
    own = given.processes or len(os.sched_getaffinity(0))
    cores = stack.enter_context(cluster(given.ray, None if given.ray else own))
    processes = given.processes or cores
    return serve.fleet(config, made, OnRay, processes), f"{processes} actors"


def _run(service: Any, config: Any, where: str) -> None:
    """Serves until it is told to stop, or every camera is over."""
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
    print(f"{len(config.cameras)} camera(s) on {where}", file=sys.stderr, flush=True)
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
