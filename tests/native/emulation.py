"""Random chains of two skipped convolutions as programs, and what NumPy makes of them."""

import dataclasses
from typing import Any

import numpy as np

from skipconv_jax.native import ConvSpec, GateSpec, Program, ProgramBuilder
from skipconv_jax.native.specs import LINEAR

Array = np.ndarray
_ACT = {"none": lambda v: v, "relu": lambda v: np.maximum(v, 0), "sqrt": np.sqrt}


@dataclasses.dataclass
class Layer:
    """One convolution and its gate; `kernel` is `(kh, kw, Ci / groups, Co)`."""

    kernel: Array
    bias: Array
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    groups: int
    block: int
    policy: str
    gate: str
    gate_params: Array
    count: float
    residual: bool
    act: str
    scaled: bool = False

    def spec(self, name: str) -> ConvSpec:
        """The layer as `ProgramBuilder.conv` takes it."""
        names = ["strides", "padding", "dilation", "groups", "policy", "act"]
        gate = GateSpec(self.gate, self.gate_params, self.block, count=self.count)
        options = {field: getattr(self, field) for field in names}
        return ConvSpec(self.kernel, self.bias, name, gate=gate, **options)

    def convolve(self, x: Array, kernel: Array, groups: int) -> Array:
        """`(B, H, W, Ci)` to `(B, oh, ow, Co)`, one tap after the other."""
        x = np.pad(x, ((0, 0), *self.padding, (0, 0)))
        (sh, sw), (dh, dw) = self.strides, self.dilation
        kh, kw, cig, co = kernel.shape
        oh, ow = (
            (x.shape[i + 1] - (k - 1) * d - 1) // s + 1
            for i, (k, d, s) in enumerate(zip((kh, kw), (dh, dw), (sh, sw), strict=True))
        )
        out = np.zeros((x.shape[0], oh, ow, co))
        for ky in range(kh):
            for kx in range(kw):
                rows = slice(ky * dh, ky * dh + (oh - 1) * sh + 1, sh)
                tap = x[:, rows, kx * dw : kx * dw + (ow - 1) * sw + 1 : sw]
                for g in range(groups):
                    to = slice(g * co // groups, (g + 1) * co // groups)
                    part = tap[..., g * cig : (g + 1) * cig]
                    out[..., to] += part @ kernel[ky, kx, :, to].astype(np.float64)
        return out

    def score(self, r: Array) -> Array:
        """Largest score of each block, `(B, nh, nw)`."""
        kh, kw, _, _ = self.kernel.shape
        if self.gate in LINEAR:
            taps = self.gate_params[1:].reshape(kh, kw, -1, 1)
            seen = np.abs(r) if self.gate == "magnitude" else r
            positions = self.convolve(seen, taps, 1)[..., 0] + self.gate_params[0]
        else:
            ones = np.ones((kh, kw, 1, 1))
            positions = (
                self.convolve(np.abs(r).sum(-1, keepdims=True), ones, 1)[..., 0] / self.count
            )
        batch, oh, ow = positions.shape
        nh, nw = -(-oh // self.block), -(-ow // self.block)
        full = np.full((batch, nh * self.block, nw * self.block), -np.inf)
        full[:, :oh, :ow] = positions
        return full.reshape(batch, nh, self.block, nw, self.block).max((2, 4))


class Emulator:
    """One layer over frames, straight from the equations."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.z: Any = None

    def step(self, x: Array, fresh: Array) -> tuple[Array, Array]:
        """Output and mask of one frame; streams where `fresh` (B,) compute everything."""
        layer, x = self.layer, x.astype(np.float64)
        if layer.scaled:
            x = x / (1 + np.exp(-x.mean(axis=(1, 2), keepdims=True)))
        full = layer.convolve(x, layer.kernel, layer.groups)
        if self.z is None:
            grid = layer.score(x).shape
            self.z, self.prev, self.acc = np.zeros_like(full), np.zeros_like(x), np.zeros(grid)
            self.refs = np.zeros((grid[1], grid[2], *x.shape))
        self.prev[fresh] = 0
        fired = self._fire(x, fresh)
        mask = fired.repeat(layer.block, 1).repeat(layer.block, 2)
        mask = mask[:, : full.shape[1], : full.shape[2], None]
        if layer.policy == "previous":
            self.z[fresh] = layer.bias
            self.z += mask * layer.convolve(x - self.prev, layer.kernel, layer.groups)
        else:
            self.z = np.where(mask, full + layer.bias, self.z)
        self.prev = x.copy()
        return _ACT[layer.act](self.z + (x if layer.residual else 0.0)), fired

    def _fire(self, x: Array, fresh: Array) -> Array:
        layer, (nh, nw) = self.layer, self.acc.shape[1:]
        always = layer.gate == "always"
        if layer.policy == "closed_loop":
            fired = np.zeros(self.acc.shape, bool)
            for y in range(nh):
                for k in range(nw):
                    fired[:, y, k] = self._exceeds(layer.score(x - self.refs[y, k])[:, y, k])
                    on = fired[:, y, k] | fresh | always
                    self.refs[y, k][on] = x[on]
        elif layer.policy == "accumulate":
            self.acc += layer.score(x - self.prev)
            fired = self._exceeds(self.acc)
        else:
            fired = self._exceeds(layer.score(x - self.prev))
        fired = fired | fresh[:, None, None] | always
        self.acc[fired] = 0
        return fired

    def _exceeds(self, score: Array) -> Array:
        return score >= 0 if self.layer.gate in LINEAR else score > self.layer.gate_params[0]


def _random_layer(
    rng: np.random.Generator, size: tuple[int, int], ci: int, scaled: bool = False
) -> Layer:
    kh, kw = (int(n) for n in rng.choice([1, 2, 3, 3, 3, 5], 2))
    dilation = tuple(int(n) for n in rng.choice([1, 1, 1, 2], 2))
    groups = int(rng.choice([1, 1, 1, ci] + [g for g in (2, 4) if ci % g == 0]))
    strides = tuple(int(n) for n in rng.choice([1, 1, 1, 2, 3], 2))
    if rng.random() < 0.4:  # what Winograd takes
        kh, kw, dilation, groups, strides = 3, 3, (1, 1), 1, (1, 1)
    if scaled:
        kh, kw, dilation, groups, strides = 1, 1, (1, 1), 1, (1, 1)
    co = groups * int(rng.integers(1, 4)) if groups > 1 else int(rng.integers(1, 70))
    if groups == ci:
        co = ci
    extent = [(k - 1) * d + 1 for k, d in zip((kh, kw), dilation, strict=True)]
    same = scaled or (rng.random() < 0.4 and strides == (1, 1))
    padding = tuple(
        ((e - 1) // 2, e // 2)
        if same
        else (
            max(0, int(rng.integers(0, e)) + min(0, n - e)),
            max(0, e - n) + int(rng.integers(0, e)),
        )
        for e, n in zip(extent, size, strict=True)
    )
    if same and groups == 1 and rng.random() < 0.5:
        co = ci
    policy = str(rng.choice(["previous", "closed_loop", "accumulate"]))
    gate = str(rng.choice(["norm", "norm", "always", "linear", "magnitude"]))
    if policy == "accumulate" and gate in LINEAR:
        gate = "norm"
    threshold = np.array([rng.choice([0.003, 0.01, 0.03, 0.06])], np.float32)
    linear = rng.normal(0, (kh * kw * ci) ** -0.5, 1 + kh * kw * ci).astype(np.float32)
    linear[0] = rng.choice([-0.4, -0.15, 0.1])
    return Layer(
        kernel=rng.normal(0, 0.2, (kh, kw, ci // groups, co)).astype(np.float32),
        bias=rng.normal(0, 0.2, co).astype(np.float32),
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        block=int(rng.choice([1, 2, 3, 4, 5, 8, 16])),
        policy=policy,
        gate=gate,
        gate_params=linear if gate in LINEAR else threshold,
        count=float(kh * kw * ci),
        residual=bool(same and co == ci and rng.random() < 0.7 and not scaled),
        act=str(rng.choice(["none", "relu"])),
        scaled=scaled,
    )  # fmt: skip


@dataclasses.dataclass
class Case:
    """A program, its frames `(T, B, h, w, c)`, resets `(T, B)` and what must come out of each."""

    program: Program
    frames: Array
    fresh: Array
    outputs: list[list[Array]]
    masks: list[Array]
    threads: int
    text: str


def random_case(seed: int) -> Case:
    """Two convolutions of random geometry, gates and policies; both their outputs leave.

    The second may take its input times the sigmoid of its mean (squeeze-and-excitation).
    """
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 23)), int(rng.integers(1, 23)))
    ci, batch, steps = int(rng.choice([1, 3, 8, 16, 20, 32, 40])), int(rng.integers(1, 4)), 5
    first = _random_layer(rng, size, ci)
    blank = np.zeros((1, *size, ci))
    middle = first.convolve(blank, first.kernel, first.groups).shape[1:3]
    second = _random_layer(rng, middle, first.kernel.shape[3], scaled=bool(rng.random() < 0.3))
    builder = ProgramBuilder(winograd=bool(rng.random() < 0.8))
    raw = ci < 16 and first.groups == 1 and not first.residual
    x = builder.input(*size, ci, raw=raw)
    refs = [x]
    for i, layer in enumerate((first, second)):
        res = refs[-1] if layer.residual else None
        scale = builder.affine(builder.spatial(refs[-1]), act="sigmoid") if layer.scaled else None
        refs.append(builder.conv(refs[-1], layer.spec(f"c{i}"), residual=res, scale=scale))
    flat = bool(rng.random() < 0.3)
    for group in [refs[1:]] if flat else [[ref] for ref in refs[1:]]:
        builder.output(*group)
    frames = np.empty((steps, batch, *size, ci), np.float32)
    frames[0] = rng.normal(size=frames.shape[1:])
    fresh = np.zeros((steps, batch), bool)
    fresh[0] = True
    for t in range(1, steps):
        frames[t] = frames[t - 1]
        fresh[t] = rng.random(batch) < 0.1
        for s in range(batch if t != 2 else 0):  # frame 2 is still
            y, k = int(rng.integers(0, size[0])), int(rng.integers(0, size[1]))
            part = frames[t, s, y : y + 5, k : k + 4]
            part += rng.normal(0, rng.choice([0.02, 0.3]), part.shape).astype(np.float32)
    emulators = [Emulator(first), Emulator(second)]
    outputs, masks = [], []
    for t in range(steps):
        h, outs, fired = frames[t], [], []
        for emulator in emulators:
            h, m = emulator.step(h, fresh[t])
            outs.append(h)
            fired.append(m.reshape(batch, -1))
        joined = [np.concatenate([o.reshape(batch, -1) for o in outs], axis=1)]
        outputs.append(joined if flat else outs)
        masks.append(np.concatenate(fired, 1))
    text = f"seed {seed}: {size} x {batch}\n" + "\n".join(
        str({k: getattr(v, "shape", v) for k, v in vars(layer).items()})
        for layer in (first, second)
    )
    return Case(builder.finish(), frames, fresh, outputs, masks, int(rng.integers(1, 4)), text)
