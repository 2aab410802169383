"""A gate plan: the gate of every convolution of one network, found by calibration, as JSON."""

import base64
import dataclasses
import glob
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from skipconv_jax import json_files, whole_files
from skipconv_jax.moved import attribute
from skipconv_jax.ops import (
    POLICIES,
    ConvNormGate,
    GumbelGate,
    InputNormGate,
    OutputNormGate,
    policy_name,
)
from skipconv_jax.ops.gates import GateParams
from skipconv_jax.program.walk import Site
from skipconv_jax.transform import Rule

FORMAT = "skipconv_jax gate plan 1"
# What the same format was called in 0.1.0.
_FORMATS = (FORMAT, "skipconv_jax plan 1")
GATES: dict[str, type[InputNormGate | OutputNormGate | ConvNormGate]] = {
    "input_norm": InputNormGate,
    "output_norm": OutputNormGate,
    "conv_norm": ConvNormGate,
}
"""Gates a gate plan can hold with their settings alone."""
TRAINED: dict[str, type[GumbelGate]] = {"gumbel": GumbelGate}
"""Gates a gate plan can hold with their trained parameters."""

# More names than these in one message help nobody.
_NAMED = 8


@dataclasses.dataclass(frozen=True)
class LayerGate:
    """What a gate plan says of one convolution.

    Attributes:
      kernel_shape: `(*window, Ci / groups, Co)`, to recognise the network by.
      gate: its gate; None leaves it dense.
      trained: (name, shape, little-endian float32 bytes) of its parameters, of a trained gate.
    """

    kernel_shape: tuple[int, ...]
    gate: Any
    trained: tuple[tuple[str, tuple[int, ...], bytes], ...] = ()

    def params(self) -> dict[str, np.ndarray]:
        """Parameters of the gate, as `net.init` makes them."""
        if not self.trained:
            return {"threshold": np.asarray(self.gate.threshold, np.float32)}
        return {
            name: np.frombuffer(data, "<f4").reshape(shape) for name, shape, data in self.trained
        }


@dataclasses.dataclass(frozen=True)
class GatePlan:
    """Gates for every convolution of a network; `skip(fn, gate_plan)` applies it.

    Attributes:
      layers: (name, layer) pairs, in the order of the trace.
      policy: name in `POLICIES` of what the gates were calibrated for.
      notes: (key, JSON text) pairs: the budget, what was measured, how.
    """

    layers: tuple[tuple[str, LayerGate], ...]
    policy: str
    notes: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"`policy` (={self.policy!r}) must be one of {sorted(POLICIES)}.")
        # Those saved under a former name of their policy are for that policy.
        object.__setattr__(self, "policy", policy_name(POLICIES[self.policy]()))

    @classmethod
    def make(
        cls,
        sites: Sequence[Site],
        gates: Mapping[str, Any],
        policy: Any,
        trained: Mapping[str, GateParams] | None = None,
        **notes: Any,
    ) -> "GatePlan":
        """A gate plan for traced convolutions.

        Args:
          sites: of the network.
          gates: by name; None or absent leaves a convolution dense.
          policy: a policy object.
          trained: parameters of gates that were trained, by name.
          **notes: anything JSON can hold.
        """
        arrays = trained or {}
        layers = tuple(
            (s.name, LayerGate(s.kernel_shape, gates.get(s.name), _packed(arrays.get(s.name, {}))))
            for s in sites
        )
        texts = tuple((key, json.dumps(value)) for key, value in notes.items())
        return cls(layers, policy_name(policy), texts)

    def rules(self) -> list[tuple[str, Rule | None]]:
        """One rule per convolution.

        Later calls of a layer (`name@1`) come first, because the pattern of `name` fits them all.
        """
        policy = POLICIES[self.policy]()
        ordered = sorted(self.layers, key=lambda named: "@" not in named[0])
        return [
            (glob.escape(name), None if layer.gate is None else Rule(layer.gate, policy))
            for name, layer in ordered
        ]

    def params(self) -> dict[str, dict[str, np.ndarray]]:
        """Parameters of all gates: `params['gates']` of a network that a trained plan was given to.

        Those of norm gates are their thresholds, which `net.init` makes as well.
        """
        return {name: layer.params() for name, layer in self.layers if layer.gate is not None}

    def check(self, sites: Sequence[Site]) -> None:
        """Refuses the convolutions of another network.

        Raises:
          ValueError: naming convolutions the plan has not, the network has not, or that differ.
        """
        planned = {name: layer.kernel_shape for name, layer in self.layers}
        found = {site.name: site.kernel_shape for site in sites}
        faults = [
            ("the plan has not", sorted(found.keys() - planned.keys())),
            ("the network has not", sorted(planned.keys() - found.keys())),
            (
                "have other kernels",
                [n for n in planned if n in found and planned[n] != found[n]],
            ),
        ]
        parts = [f"{what}: {_some(names)}" for what, names in faults if names]
        if parts:
            raise ValueError(
                "`gate plan` must be made for this network; convolutions that "
                f"{'; that '.join(parts)}. Calibrate this network."
            )

    def note(self, key: str) -> Any:
        """A note by its key, None where there is none."""
        return next((json.loads(text) for name, text in self.notes if name == key), None)

    def save(self, path: str | Path) -> None:
        """Writes the gate plan as JSON."""
        layers = {
            name: {"kernel": list(layer.kernel_shape), **_layer_settings(layer)}
            for name, layer in self.layers
        }
        notes = {key: json.loads(text) for key, text in self.notes}
        whole = {"format": FORMAT, "policy": self.policy, "notes": notes, "layers": layers}
        whole_files.write_text(path, json.dumps(whole, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "GatePlan":
        """Reads what `save` wrote.

        Raises:
          ValueError: no gate plan, or one of another version.
        """
        try:
            whole = json_files.read(path, _File)
            if whole.format not in _FORMATS:
                raise ValueError(f"it must hold 'format': {FORMAT!r}")
            layers = tuple(
                (name, LayerGate(layer.kernel, _gate(layer.gate), _trained(layer)))
                for name, layer in whole.layers.items()
            )
            notes = tuple((key, json.dumps(value)) for key, value in whole.notes.items())
            return cls(layers, whole.policy, notes)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"`gate plan` (={str(path)!r}) must be a file written by calibrate.py; {error}."
            ) from error


_Name = Annotated[str, msgspec.Meta(max_length=80)]


class _Array(msgspec.Struct, frozen=True):
    shape: tuple[json_files.Count, ...]
    # Base64 of little-endian floats; msgspec decodes it.
    float32: bytes


class _Layer(msgspec.Struct, frozen=True):
    kernel: tuple[json_files.Count, ...]
    # A gate's class checks its own numbers; here they are numbers, and finite.
    gate: dict[str, json_files.Int32 | json_files.Finite | bool | _Name | None] | None
    params: dict[str, _Array] = {}


class _File(msgspec.Struct, frozen=True):
    format: _Name
    policy: _Name
    notes: dict[str, Any]
    layers: dict[str, _Layer]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def gate_name(gate: Any) -> str:
    """The name of a gate's class in `GATES`.

    Raises:
      ValueError: a gate a gate plan can't hold.
    """
    for name, cls in GATES.items():
        if type(gate) is cls:
            return name
    raise ValueError(f"`gate` (={gate}) must be one of {sorted(GATES)} to be part of a gate plan.")


def _packed(params: GateParams) -> tuple[tuple[str, tuple[int, ...], bytes], ...]:
    arrays = {name: np.asarray(value, "<f4") for name, value in sorted(params.items())}
    return tuple((name, array.shape, array.tobytes()) for name, array in arrays.items())


def _layer_settings(layer: LayerGate) -> dict[str, Any]:
    """What a file says of a layer beside its kernel."""
    gate = layer.gate
    if gate is None:
        return {"gate": None}
    if not layer.trained:
        return {"gate": {"name": gate_name(gate), **dataclasses.asdict(gate)}}
    name = next(name for name, cls in TRAINED.items() if type(gate) is cls)
    params = {
        key: {"shape": list(shape), "float32": base64.b64encode(data).decode()}
        for key, shape, data in layer.trained
    }
    return {"gate": {"name": name, **dataclasses.asdict(gate)}, "params": params}


def _trained(layer: _Layer) -> tuple[tuple[str, tuple[int, ...], bytes], ...]:
    """Trained parameters of a file's layer, checked.

    Raises:
      ValueError: parameters of a gate that has none, none of one that has, or broken ones.
    """
    wanted = layer.gate is not None and layer.gate.get("name") in TRAINED
    if wanted != bool(layer.params):
        raise ValueError("trained gates, and no others, must come with their parameters")
    for name, array in layer.params.items():
        if len(array.float32) != 4 * math.prod(array.shape):
            raise ValueError(f"parameter {name!r} must have as many numbers as its shape says")
        if not np.isfinite(np.frombuffer(array.float32, "<f4")).all():
            raise ValueError(f"parameter {name!r} must be finite")
    return tuple((name, tuple(a.shape), a.float32) for name, a in sorted(layer.params.items()))


def _gate(settings: Mapping[str, Any] | None) -> Any:
    if settings is None:
        return None
    options = dict(settings)
    name = options.pop("name")
    if name not in GATES | TRAINED:
        raise ValueError(f"gate {name!r} must be one of {sorted(GATES | TRAINED)}")
    return (GATES | TRAINED)[name](**options)


def __getattr__(name: str) -> Any:
    """Names of 0.1.0."""
    return attribute(__name__, name)
