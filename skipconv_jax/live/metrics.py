"""Figures of the service for Prometheus: read off when somebody asks, so that nothing grows."""

from collections.abc import Iterator
from typing import Any

from skipconv_jax.extras import required
from skipconv_jax.live.fleet import Fleet
from skipconv_jax.live.service import QUANTILES, Service

with required():
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector

_COUNTERS = {
    "frames": ("frames read and whole", lambda f: f.camera.frames),
    "answers": ("frames with an answer", lambda f: f.answered),
    "dropped": ("wanted frames that were never taken", lambda f: f.camera.dropped),
    "thinned": ("frames left out by the camera's rate", lambda f: f.camera.thinned),
    "damaged": ("frames read and not whole", lambda f: f.camera.damaged),
    "failed": ("frames the network or their decoding failed on", lambda f: f.failed),
    "resets": ("answers to reference frames", lambda f: f.resets),
    "reconnects": ("connections after the first", lambda f: f.camera.reconnects),
    "stalls": ("connections given up because nothing came", lambda f: f.camera.stalls),
    "dense_frames": ("cost so far, in frames of the dense network", lambda f: f.macs),
    "compute_seconds": ("time of computing", lambda f: f.seconds),
}
_GAUGES = {
    "fps": ("frames per second that the camera sends", lambda f: f.camera.fps),
    "live": ("1 where the camera sends, else 0", lambda f: f.camera.state == "live"),
    "mac_share": ("mean cost of the last answers, dense is 1", lambda f: _mean(f.costs)),
    "state_bytes": ("state that the stream holds", lambda f: f.state_bytes),
}


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values) if values else float("nan")


class _Figures(Collector):
    def __init__(self, service: Service | Fleet) -> None:
        self._service = service

    def collect(self) -> Iterator[Any]:
        """Families of this moment."""
        streams = self._service.figures()
        kinds: tuple[tuple[Any, Any], ...] = (
            (CounterMetricFamily, _COUNTERS),
            (GaugeMetricFamily, _GAUGES),
        )
        for family, named in kinds:
            for name, (text, value) in named.items():
                made = family(f"skipconv_{name}", text, labels=["camera"])
                for camera, figures in streams.items():
                    made.add_metric([camera], float(value(figures)))
                yield made
        late = GaugeMetricFamily(
            "skipconv_latency_seconds",
            "from a frame's arrival to its answer, of the last 512",
            labels=["camera", "quantile"],
        )
        for camera, figures in streams.items():
            for quantile, seconds in zip(QUANTILES, figures.latency, strict=True):
                late.add_metric([camera, f"{quantile:g}"], seconds)
        yield late
        yield from self._outlets()

    def _outlets(self) -> Iterator[Any]:
        found = [outlet.status() for outlet in self._service.outlets]
        for name in ("written", "lost"):
            made = CounterMetricFamily(
                f"skipconv_outlet_{name}", f"answers {name}", labels=["outlet"]
            )
            for status in found:
                made.add_metric([status.name], getattr(status, name))
            yield made
        waiting = GaugeMetricFamily("skipconv_outlet_waiting", "answers waiting", labels=["outlet"])
        for status in found:
            waiting.add_metric([status.name], status.waiting)
        yield waiting


def registry(service: Service | Fleet) -> CollectorRegistry:
    """The service's figures, and nothing else."""
    made = CollectorRegistry(auto_describe=False)
    made.register(_Figures(service))
    return made


def text(made: CollectorRegistry) -> bytes:
    """In Prometheus' text format."""
    written: bytes = generate_latest(made)
    return written
