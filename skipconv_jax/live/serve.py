"""From a file of cameras to a running service."""

import os
from typing import Any

import cv2

from skipconv_jax.live.camera import Camera
from skipconv_jax.live.config import Config, experiment
from skipconv_jax.live.engine import Engine, PlanEngine
from skipconv_jax.live.outlets import LinesFile, Outlet, StandardOutput
from skipconv_jax.live.service import Service, Watch


def plan_engine(config: Config, with_gates: Any, fired: bool) -> PlanEngine:
    """The network of the file, compiled.

    Args:
      config: the file.
      with_gates: `(experiment, weights) -> params`.
      fired: make maps of fired blocks.
    """
    made, weights = experiment(config.network)
    return PlanEngine(
        made,
        with_gates(made, weights),
        engine=config.network.engine,
        min_score=config.network.min_score,
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
    streams = []
    for part in config.cameras:
        camera = Camera(part.name, part.address, part.connection(), part.inbox(), rate=part.rate)
        watch = Watch(part.priority, part.ignore, part.zones, part.reset_every, part.cuts)
        streams.append((camera, watch))
    workers = config.workers or len(os.sched_getaffinity(0))
    return Service(engine, streams, outlets(config), workers, config.whole_frames)
