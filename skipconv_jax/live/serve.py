"""From a file of cameras to a running service."""

import functools
import os
from collections.abc import Callable
from typing import Any

import cv2

from skipconv_jax.live.config import Config, Network, experiment
from skipconv_jax.live.engine import Engine, PlanEngine
from skipconv_jax.live.fleet import Fleet
from skipconv_jax.live.outlets import LinesFile, Outlet, StandardOutput
from skipconv_jax.live.service import Service
from skipconv_jax.live.station import Station, stream
from skipconv_jax.live.workers import Worker


def plan_engine(config: Config, with_gates: Any, fired: bool) -> PlanEngine:
    """The network of the file, compiled.

    Args:
      config: the file.
      with_gates: `(experiment, weights) -> params`.
      fired: make maps of fired blocks.
    """
    return network_engine(config.network, with_gates, fired)


def network_engine(network: Network, with_gates: Any, fired: bool) -> PlanEngine:
    """A network, compiled; as for `plan_engine`."""
    made, weights = experiment(network)
    return PlanEngine(
        made,
        with_gates(made, weights),
        engine=network.engine,
        min_score=network.min_score,
        fired=fired,
    )


def one_thread_each() -> None:
    """Streams are what runs side by side: OpenCV's own threads would only wait for each other."""
    cv2.setNumThreads(1)


def outlets(config: Config) -> list[Outlet]:
    """Where answers go.

    Raises:
      OSError: a file that can't be opened.
    """
    made = []
    if config.lines:
        lines = config.lines
        writer: Any = (
            StandardOutput()
            if lines.path == "-"
            else LinesFile(lines.path, int(lines.rotate_mb * 1e6), lines.keep)
        )
        made.append(Outlet("lines", writer, lines.queue))
    if config.mqtt:
        # Imported here: few have a broker.
        from skipconv_jax.live.mqtt import Broker

        to = config.mqtt
        broker = Broker(to.host, to.port, to.topic, to.user, to.password, to.tls)
        made.append(Outlet("mqtt", broker, to.queue))
    return made


def service(config: Config, engine: Engine) -> Service:
    """Cameras, engine and outlets together, not yet started."""
    streams = [stream(part) for part in config.cameras]
    workers = config.workers or len(os.sched_getaffinity(0))
    return Service(engine, streams, outlets(config), workers, config.whole_frames)


def fleet(
    config: Config, make_engine: Callable[[], Engine], start: Callable[..., Worker], processes: int
) -> Fleet:
    """The same over worker processes, not yet started.

    Args:
      config: the file.
      make_engine: makes the network, in each worker.
      start: of a worker: `workers.Local`, or `on_ray.OnRay`.
      processes: how many.
    """
    threads, share = config.workers or 1, config.whole_frames / processes
    made = functools.partial(start, Station, make_engine, threads, share)
    return Fleet(config.cameras, made, processes, outlets(config))
