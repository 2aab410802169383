"""The file that `skipconv serve` reads: YAML or TOML, all of it checked before it is acted on.

`${NAME}` in a text is the environment's variable, so that no secret need stand in the file.
"""

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from skipconv_jax.live.address import kind
from skipconv_jax.live.capture import Connection
from skipconv_jax.live.guarded import LOOPBACK
from skipconv_jax.live.inbox import Inbox
from skipconv_jax.tasks import Experiment
from skipconv_jax.tasks.given.boxes import DetectionGiven
from skipconv_jax.tasks.given.experiment import Network as GivenNetwork
from skipconv_jax.tasks.given.experiment import configuration, from_function, from_onnx, given

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Point = tuple[Share, Share]
Polygon = Annotated[list[Point], msgspec.Meta(min_length=3, max_length=1000)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


_MOST_VALUES = 100_000


class ConfigError(ValueError):
    """A file of cameras that can't be read or says what it must not."""


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which network runs.

    Attributes:
      onnx: a trained one's file.
      preset: what its input and outputs mean (`skipconv_jax.presets`); '' streams raw outputs.
      fn: instead of a file, `module:function` that returns (variables, fn); it needs a `size`.
      size: height and width of its input, where the file leaves them free.
      gate_plan: thresholds of every layer, a file of `skipconv calibrate`.
      threshold: of all layers, without a gate plan; None for the careful default.
      block: side of the blocks that fire together; None for the default.
      policy: what residuals are taken against; `closed_loop` does not drift.
      engine: as for `compile_plan`.
      min_score: answers with less confidence are left out.
    """

    onnx: str = ""
    preset: str = ""
    fn: str = ""
    size: tuple[int, int] | None = None
    gate_plan: str = ""
    threshold: NotNegative | None = None
    block: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    policy: str = "closed_loop"
    engine: str = "auto"
    min_score: Share = 0.3


class CameraPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A camera.

    Attributes:
      name: in answers and metrics.
      address: see docs/guides/live.md.
      rate: frames per second that are wanted at most; 0 for all.
      priority: its share where there is too much to do, relative to the others'.
      queue: frames that may wait.
      drop: which is dropped where the queue is full.
      ignore: polygons of pixels that may change without waking anything.
      zones: named polygons; answers say which box stands where.
      reset_every: frames between reference frames; 0 takes one at the start and after events only.
      cuts: take a reference frame where the scene is cut, or the camera switches to the night.
      transport, open_seconds, stall_seconds, damaged, format, options, pace, loop: as for
        `capture.Connection`.
    """

    name: Name
    address: Annotated[str, msgspec.Meta(min_length=1)]
    rate: NotNegative = 0
    priority: Positive = 1
    queue: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    drop: Literal["newest", "oldest", "wait"] = "newest"
    ignore: list[Polygon] = []
    zones: dict[Name, Polygon] = {}
    reset_every: Annotated[int, msgspec.Meta(ge=0)] = 0
    cuts: bool = True
    transport: Literal["tcp", "udp"] = "tcp"
    open_seconds: Positive = 10
    stall_seconds: Positive = 10
    damaged: Literal["drop", "keep"] = "drop"
    format: str = ""
    options: dict[str, str] = {}
    pace: bool = True
    loop: bool = False

    def connection(self) -> Connection:
        """How it is opened."""
        return Connection(
            self.transport,
            self.open_seconds,
            self.stall_seconds,
            self.damaged,
            self.format,
            self.options,
            self.pace,
            self.loop,
        )

    def inbox(self) -> Inbox[Any]:
        """Where its frames wait."""
        return Inbox(self.queue, self.drop)


class Lines(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """JSON lines.

    Attributes:
      path: of the file, '-' for standard output.
      rotate_mb: a file this large is put aside as `path.1`, 0 never.
      keep: files put aside.
      queue: answers that may wait for a slow or full disk; the oldest go first, and are counted.
    """

    path: str
    rotate_mb: NotNegative = 100
    keep: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    queue: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1000


class Api(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """HTTP, web sockets, metrics and the live page.

    Attributes:
      host: to bind to; another than the loopback needs a token.
      port: 0 takes a free one.
      token: that everything but the page itself needs.
    """

    host: str = "127.0.0.1"
    port: Port = 8787
    token: Annotated[str, msgspec.Meta(pattern=r"^$|^[A-Za-z0-9_-]{16,256}$")] = ""


class Mqtt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A broker; see `mqtt.Broker`.

    Attributes:
      host, port, topic, user, password, tls: of the broker.
      queue: answers that may wait for it; the oldest go first, and are counted.
    """

    host: Annotated[str, msgspec.Meta(min_length=1)]
    port: Port = 1883
    topic: Annotated[str, msgspec.Meta(pattern=r"^[^+#]{1,200}$")] = "skipconv"
    user: str = ""
    password: str = ""
    tls: bool = False
    queue: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1000


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file.

    Attributes:
      network: which runs.
      cameras: at least one.
      workers: streams computed at once, each on a thread of its own; 0 for as many as cores, of
        several processes one in each.
      whole_frames: a second, over all cameras: what cuts and connections may cost; 0 for no bound.
      lines: where answers go as JSON lines.
      api: HTTP and the live page, None for none.
      mqtt: a broker, None for none.
    """

    network: Network
    cameras: Annotated[list[CameraPart], msgspec.Meta(min_length=1)]
    workers: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    whole_frames: NotNegative = 0
    lines: Lines | None = None
    api: Api | None = None
    mqtt: Mqtt | None = None


def load(path: str | os.PathLike[str], environment: Mapping[str, str] = os.environ) -> Config:
    """The file's content.

    Raises:
      ConfigError: it can't be read, or a value is not what it must be; names its place.
    """
    path = Path(path)
    return convert(path, _expanded(path, _content(path), environment))


def _content(path: Path) -> Any:
    if path.suffix.lower() not in (".yaml", ".yml", ".toml"):
        raise ConfigError(f"`config` (={path}) must end in .yaml, .yml or .toml.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ConfigError(f"`config` (={path}) can't be read: {reason}.") from None
    if path.suffix.lower() == ".toml":
        try:
            return tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: it is no valid TOML: {error}.") from None
    # Imported here: TOML needs nothing.
    import yaml

    try:
        return yaml.safe_load(text)
    # A date that is none and a number of 5,000 digits are plain ValueErrors.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}: it is no valid YAML{where}: {getattr(error, 'problem', '') or 'unreadable'}."
        ) from None


def _expanded(path: Path, content: Any, environment: Mapping[str, str]) -> Any:
    """The content with its variables filled in."""
    left = [_MOST_VALUES]

    def expanded(value: Any, place: str) -> Any:
        left[0] -= 1
        # Aliases of aliases make a short file grow without end.
        if left[0] < 0:
            raise ConfigError(f"{path}: it must hold at most {_MOST_VALUES} values.")
        if isinstance(value, dict):
            return {key: expanded(part, f"{place}.{key}") for key, part in value.items()}
        if isinstance(value, list):
            return [expanded(part, f"{place}[{i}]") for i, part in enumerate(value)]
        return _filled(path, value, environment, place) if isinstance(value, str) else value

    try:
        return expanded(content, "$")
    except RecursionError:
        raise ConfigError(f"{path}: it is nested too deep.") from None


def _filled(path: Path, value: str, environment: Mapping[str, str], place: str) -> str:
    def variable(found: re.Match[str]) -> str:
        if found[1] not in environment:
            raise ConfigError(
                f"{path}: {place} names ${{{found[1]}}}, which the environment has not; set it."
            )
        return environment[found[1]]

    return re.sub(r"\$\{(\w+)\}", variable, value)


def convert(path: Path, content: Any) -> Config:
    """Parsed content as a `Config`; no message holds a value, which may be a secret.

    Raises:
      ConfigError: as for `load`.
    """
    try:
        config = msgspec.convert(content, Config)
    except (msgspec.ValidationError, RecursionError) as error:
        reason, _, place = str(error).partition(" - at `")
        place = place.rstrip("`") or "$"
        raise ConfigError(
            f"{path}: {reason[:300]} at {place[:300]}{_fix(reason, place)}."
        ) from None
    if bool(config.network.onnx) == bool(config.network.fn):
        raise ConfigError(f"{path}: one of `onnx` and `fn` must be given at $.network.")
    names = [camera.name for camera in config.cameras]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"{path}: `name` (={twice[0]!r}) must be of one camera only at $.cameras."
        )
    if config.api and config.api.host not in LOOPBACK and not config.api.token:
        raise ConfigError(
            f"{path}: `host` (={config.api.host!r}) must be of the loopback, or $.api needs a "
            "`token` of at least 16 letters and digits; name a variable: token: ${NAME}."
        )
    for index, camera in enumerate(config.cameras):
        try:
            kind(camera.address)
        except ValueError as error:
            raise ConfigError(f"{path}: {error} at $.cameras[{index}].address") from None
    return config


_PARTS = {"network": Network, "cameras": CameraPart, "lines": Lines, "api": Api, "mqtt": Mqtt}


def _fix(reason: str, place: str) -> str:
    """What would be right, where a name is unknown."""
    if "unknown field" not in reason:
        return ""
    root = re.match(r"\$\.?(\w*)", place)
    part: Any = _PARTS.get(root[1] if root else "", Config)
    return f"; it must be one of {', '.join(part.__struct_fields__)}"


def experiment(network: Network) -> tuple[Experiment, dict[str, Any]]:
    """The experiment and weights of a network.

    Raises:
      ValueError: a file, preset or gate plan that does not fit.
    """
    brought: GivenNetwork = (
        from_onnx(network.onnx, network.size)
        if network.onnx
        else from_function(network.fn, network.size)
    )
    settings = configuration(brought, (None, network.threshold, network.block), network.policy)
    if network.gate_plan:
        with settings.unlocked():
            settings.skip.gate_plan = network.gate_plan
    task, preset = ("detection", network.preset) if network.preset else ("raw", None)
    made: Experiment = given(brought, task, preset, settings)
    if isinstance(made, DetectionGiven):
        made = dataclasses.replace(made, floor=network.min_score)
    return made, {"model": brought.variables, "gates": {}}
