"""What is drawn: networks, how each convolution is skipped, and clips."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipconv_jax import Rule
from skipconv_jax.ops import (
    Accumulate,
    AlwaysGate,
    ClosedLoop,
    GumbelGate,
    InputNormGate,
    OutputNormGate,
    Previous,
)
from tests.random_networks.networks import ACTIVATIONS, Network, Op

_POLICIES = (Previous(), ClosedLoop(), Accumulate())
_JOINS = ("add", "add", "sub", "mul", "max", "concat", "concat")
_POINTWISE = (
    "act", "act", "act", "act", "norm", "prelu", "slice", "shuffle", "squeeze_excite",
    "global_mean", "softmax", "reduce",
)  # fmt: skip
_SPATIAL = (
    "max_pool", "mean_pool", "upsample", "pad", "crop", "global_max", "space_to_depth",
    "transposed", "transposed",
)  # fmt: skip


def network(rng: np.random.Generator, layouts: Sequence[str] = ("NHWC", "NCHW")) -> Network:
    """Between 4 and 14 operations, half of them convolutions."""
    ops: list[Op] = []
    for index in range(int(rng.integers(4, 15))):
        ops.append(_op(rng, index, ops))
    taps = rng.choice(len(ops), size=min(2, len(ops)), replace=False) + 1
    outputs = dict.fromkeys([len(ops), *(int(t) for t in taps if rng.random() < 0.4)])
    made = Network(
        layout=str(rng.choice(list(layouts))),
        spatial=(int(rng.integers(5, 27)), int(rng.integers(5, 27))),
        channels=int(rng.choice([1, 3, 3, 4, 8, 17])),
        ops=tuple(ops),
        outputs=tuple(outputs),
        seed=int(rng.integers(2**31)),
        heads=bool(rng.random() < 0.2),
    )
    # Dead code is compiled away; now and then it is left in.
    return made if rng.random() < 0.1 else made.alive()


def _op(rng: np.random.Generator, index: int, before: list[Op]) -> Op:
    last = index if rng.random() < 0.75 else int(rng.integers(0, index + 1))
    other = int(rng.integers(0, index + 1))
    kind = rng.random()
    if index == 0 or kind < 0.5:
        return _conv(rng, index, last, before)
    if kind < 0.65:
        return Op(str(rng.choice(_JOINS)), (last, other))
    if kind < 0.85:
        name = str(rng.choice(_POINTWISE))
        extra = {
            "act": lambda: {"fn": str(rng.choice(list(ACTIVATIONS)))},
            "norm": lambda: {"layer": f"n{index}"},
            "prelu": lambda: {"layer": f"p{index}"},
            "reduce": lambda: {"fn": str(rng.choice(["mean", "sum"]))},
            "squeeze_excite": lambda: {"layer": f"s{index}"},
            "slice": lambda: {"share": tuple(sorted(map(float, rng.random(2).round(2))))},
        }.get(name, dict)()
        return Op(name, (last,), tuple(extra.items()))
    name = str(rng.choice(_SPATIAL))
    extra = {"layer": f"t{index}"} if name == "transposed" else {}
    return Op(name, (last,), tuple((extra | _spatial(rng, name)).items()))


def _pads(rng: np.random.Generator, most: int) -> tuple[tuple[int, int], ...]:
    low, high = rng.integers(0, most + 1, 2), rng.integers(0, most + 1, 2)
    return tuple((int(a), int(b)) for a, b in zip(low, high, strict=True))


def _spatial(rng: np.random.Generator, name: str) -> dict[str, Any]:
    if name in ("max_pool", "mean_pool"):
        window = tuple(int(k) for k in rng.choice([2, 2, 3], 2))
        strides = tuple(int(s) for s in rng.choice([1, 2, 2], 2))
        return {"window": window, "strides": strides, "padding": _pads(rng, 1)}
    if name == "upsample":
        return {"method": str(rng.choice(["repeat", "repeat", "nearest", "bilinear"]))}
    if name == "pad":
        return {"padding": _pads(rng, 3)}
    if name == "crop":
        return {"cut": tuple((int(rng.integers(0, 2)), int(rng.choice([1, 2]))) for _ in range(2))}
    if name == "transposed":
        return {"window": int(rng.choice([2, 2, 3, 4])), "features": int(rng.choice([4, 8, 17]))}
    return {}


def _conv(rng: np.random.Generator, index: int, source: int, before: list[Op]) -> Op:
    earlier = [op for op in before if op.kind == "conv"]
    if earlier and rng.random() < 0.25:
        # The same kernel again: on the same tensor's neighbour it fits, elsewhere it may not.
        again = earlier[int(rng.integers(len(earlier)))]
        source = int(rng.choice([source, again.inputs[0], before.index(again) + 1]))
        return dataclasses.replace(again, inputs=(source,))
    square = rng.random() < 0.7
    k = int(rng.choice([1, 1, 3, 3, 3, 5]))
    window = (k, k) if square else tuple(int(n) for n in rng.choice([1, 2, 3], 2))
    stride = tuple(int(s) for s in (rng.choice([1, 1, 2]),) * 2)
    if rng.random() < 0.1:
        stride = tuple(int(s) for s in rng.choice([1, 2, 3], 2))
    dilation = (1, 1) if rng.random() < 0.85 else tuple(int(d) for d in rng.choice([1, 2], 2))
    same = [(n - 1) * d for n, d in zip(window, dilation, strict=True)]
    padding = tuple((n // 2, n - n // 2) for n in same)
    if rng.random() < 0.3:
        padding = _pads(rng, max(window))
    attributes = {
        "layer": f"c{index}",
        "window": window,
        "strides": stride,
        "dilation": dilation,
        "padding": padding,
        "groups": str(rng.choice(["one", "one", "one", "two", "depthwise"])),
        "multiplier": int(rng.choice([1, 1, 2])),
        "features": int(rng.choice([1, 4, 6, 8, 15, 16, 17, 24, 32])),
        "bias": bool(rng.random() < 0.6),
        "off_frame": bool(rng.random() < 0.08),
    }
    return Op("conv", (source,), tuple(attributes.items()))


def gate(rng: np.random.Generator, policy: Any) -> Any:
    """A gate that the policy takes, of a threshold that some blocks pass."""
    block = int(rng.choice([1, 2, 3, 4, 4, 5, 8]))
    kinds = ["input", "input", "sum", "output", "output sum", "gumbel", "magnitude", "always"]
    kind = str(rng.choice(kinds[:5] if isinstance(policy, Accumulate) else kinds))
    level = float(10 ** rng.uniform(-2.5, -0.5))
    return {
        "input": lambda: InputNormGate(level, block),
        "sum": lambda: InputNormGate(20 * level, block, "sum"),
        "output": lambda: OutputNormGate(0.1 * level, block),
        "output sum": lambda: OutputNormGate(200 * level, block, "sum"),
        "gumbel": lambda: GumbelGate(block, float(rng.uniform(-0.6, 0.1))),
        "magnitude": lambda: GumbelGate(block, -0.2, kernel_gain=4.0, sees="magnitude"),
        "always": lambda: AlwaysGate(block),
    }[kind]()


@dataclasses.dataclass(frozen=True)
class Skipping:
    """How a network is skipped: a default, and rules for named convolutions."""

    gate: Any
    policy: Any
    rules: tuple[tuple[str, Rule | None], ...]

    def among(self, names: Sequence[str]) -> "Skipping":
        """Without the rules of convolutions that a shortened network has no more."""
        kept = tuple(rule for rule in self.rules if rule[0] in names)
        return dataclasses.replace(self, rules=kept)


def skipping(rng: np.random.Generator, names: Sequence[str]) -> Skipping:
    """One gate and policy for all, others for some; a call of its own may differ from its kernel's.

    Rules of single calls (`name@1`) come first, because that of `name` fits them all.
    """
    policy = _POLICIES[rng.integers(len(_POLICIES))]
    rules = []
    for name in sorted(names, key=lambda n: "@" not in n):
        if rng.random() < 0.35:
            own = _POLICIES[rng.integers(len(_POLICIES))]
            rules.append((name, None if rng.random() < 0.3 else Rule(gate(rng, own), own)))
    return Skipping(gate(rng, policy), policy, tuple(rules))


def clip(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    frames: int,
    *,
    broken: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Frames `(T, *shape)` and resets `(T, B)`; the first frame starts every stream.

    Each stream for itself repeats its frame, adds noise, moves a patch, fades, cuts to something
    else, or (if `broken`) shows NaN, Inf or denormal numbers in a patch, and is reset at times.
    """
    clip, streams = np.zeros((frames, *shape), np.float32), shape[0]
    resets = rng.random((frames, streams)) < 0.06
    resets[0] = True
    now = rng.standard_normal(shape).astype(np.float32)
    for t in range(frames):
        for b in range(streams):
            if t:
                now[b] = _moved(rng, now[b], broken=broken)
            clip[t, b] = now[b]
            # What is broken lasts one frame: afterwards the scene is as it was.
            if broken and rng.random() < 0.04:
                clip[t, b][_patch(rng, now[b])] = rng.choice([np.nan, np.inf, -np.inf, 1e-40])
    return clip, resets


def _patch(rng: np.random.Generator, image: np.ndarray) -> tuple[slice, ...]:
    ends = [sorted(rng.integers(0, n + 1, 2)) for n in image.shape]
    return tuple(slice(int(a), int(max(b, a + 1))) for a, b in ends)


def _moved(rng: np.random.Generator, image: np.ndarray, *, broken: bool) -> np.ndarray:
    what = rng.random()
    if what < 0.25:
        return image
    if what < 0.4:
        return image + np.float32(10 ** rng.uniform(-4, -1)) * rng.standard_normal(
            image.shape
        ).astype(np.float32)
    if what < 0.85:
        image = image.copy()
        at = _patch(rng, image)
        image[at] += np.float32(10 ** rng.uniform(-2, 0.5)) * rng.standard_normal(
            image[at].shape
        ).astype(np.float32)
        return image
    if what < 0.95:
        return image * np.float32(rng.uniform(0.97, 1.03))
    if broken and what < 0.96:
        return np.full_like(image, 1e-39)
    return rng.standard_normal(image.shape).astype(np.float32)
