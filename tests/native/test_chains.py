"""Chains of 1x1 convolutions, tile by tile: values to rounding, masks exactly, nothing stored."""

import dataclasses

import numpy as np
import pytest

from skipconv_jax import native
from skipconv_jax.native import ProgramBuilder, schema
from skipconv_jax.native.layout import Ref
from skipconv_jax.native.profiling import records
from skipconv_jax.native.program import Program
from tests.native.emulation import Array, Emulator, Layer

needs_engine = pytest.mark.skipif(not native.available(), reason=native.status())
STEPS = 8


def _layer(
    rng: np.random.Generator, ci: int, block: int, window: int = 1, groups: int = 1, stride: int = 1
) -> Layer:
    co = ci if groups > 1 else int(rng.integers(1, 70))
    pad = (window - 1) // 2
    return Layer(
        kernel=rng.normal(0, 0.3, (window, window, ci // groups, co)).astype(np.float32),
        bias=rng.normal(0, 0.2, co).astype(np.float32),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dilation=(1, 1),
        groups=groups,
        block=block,
        policy="closed_loop",
        gate=str(rng.choice(["norm", "norm", "norm", "always"])),
        gate_params=np.array([rng.choice([0.003, 0.01, 0.03])], np.float32),
        count=float(window * window * ci),
        residual=False,
        act=str(rng.choice(["none", "relu"])),
    )


@dataclasses.dataclass
class Node:
    """A convolution, and those that read nothing but it."""

    name: str
    emulator: Emulator
    readers: "list[Node]"

    def build(self, builder: ProgramBuilder, x: Ref) -> None:
        made = builder.conv(x, self.emulator.layer.spec(self.name))
        for reader in self.readers:
            reader.build(builder, made)
        if not self.readers:
            builder.output(made)

    def step(self, x: Array, fresh: Array, masks: dict[str, Array]) -> list[Array]:
        with np.errstate(invalid="ignore"):
            made, masks[self.name] = self.emulator.step(x, fresh)
        if not self.readers:
            return [made]
        return [out for reader in self.readers for out in reader.step(made, fresh, masks)]

    def all(self) -> "list[Node]":
        return [self, *(node for reader in self.readers for node in reader.all())]


class _Strict(Emulator):
    """NaN fires."""

    def _exceeds(self, score: Array) -> Array:
        return ~(score <= self.layer.gate_params[0])


def _tree(rng: np.random.Generator, layer: Layer, depth: int, name: str) -> Node:
    count = int(rng.integers(1, 3)) if depth else 0
    layers = [_layer(rng, layer.kernel.shape[3], layer.block) for _ in range(count)]
    readers = [_tree(rng, one, depth - 1, f"{name}.{i}") for i, one in enumerate(layers)]
    return Node(name, _Strict(layer), readers)


def _frames(rng: np.random.Generator, shape: tuple[int, ...], broken: bool) -> Array:
    frames = np.empty((STEPS, *shape), np.float32)
    frames[0] = rng.normal(size=shape)
    for t in range(1, STEPS):
        frames[t] = frames[t - 1]
        y, k = int(rng.integers(0, shape[1])), int(rng.integers(0, shape[2]))
        part = frames[t, :, y : y + 5, k : k + 4]
        if t not in (2, 5):  # those are still
            part += rng.normal(0, rng.choice([0.02, 0.3]), part.shape).astype(np.float32)
        if broken and t == 3:
            frames[t, 0, y, k, 0] = rng.choice([np.nan, np.inf])
        if broken and t == 6:
            frames[t] = frames[2]
    return frames


def _links(program: Program) -> int:
    tensors, ops = records(program)
    links = [op for op in ops if op["kind"] == schema.value("OpKind", "conv") and op["head"] >= 0]
    assert all(tensors[op["src"][0]]["cur"] == -1 for op in links)
    return len(links)


def _play(
    program: Program, tree: Node, frames: Array, gathered: Array, rng: np.random.Generator
) -> None:
    """Every frame with resets of single streams, and other thresholds from frame 4 on."""
    words, weights, gates = program.constants
    state = program.init_state(frames.shape[1])
    for t in range(STEPS):
        fresh = np.full(frames.shape[1], t == 0) | (rng.random(frames.shape[1]) < 0.1)
        state = program.reset(state, fresh)
        if t == 4:
            packed = np.array(gates)
            for node in tree.all():
                layer = node.emulator.layer
                layer.gate_params = layer.gate_params * np.float32(rng.choice([0.1, 1, 3]))
                slot = program.masks[node.name]
                new = slot.words(layer.gate_params)
                packed[slot.gate_offset : slot.gate_offset + new.size] = new
            gates = packed
        want: dict[str, Array] = {}
        outputs = tree.step(gathered[t], fresh, want)
        made, state, masks = program.apply(
            (words, weights, gates), state, frames[t], threads=int(rng.integers(1, 3))
        )
        for name, mask in program.fired(masks).items():
            np.testing.assert_array_equal(mask, want[name], err_msg=f"frame {t}, {name}")
        for one, out in zip(made, outputs, strict=True):
            np.testing.assert_allclose(one, out, rtol=1e-4, atol=1e-4, err_msg=f"frame {t}")


@needs_engine
@pytest.mark.parametrize("seed", range(12))
def test_links_of_a_convolution_equal_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    h, w, ci, batch = (int(rng.integers(1, n)) for n in (40, 40, 33, 3))
    ci, block = max(ci, 3), int(rng.choice([4, 8]))
    kind = seed % 4
    window, groups, stride = ((3, ci, 1), (1, 1, 1), (3, 1, 1), (3, ci, 2))[kind]
    if kind == 2:
        ci = 16  # Winograd
    root = _layer(rng, ci, block, window, groups, stride)
    if seed % 2:  # NaN where the input is finite and does not change
        root.act, root.bias = "sqrt", root.bias + np.float32(1.5 if seed % 4 == 1 else 4)
    tree = _tree(rng, root, int(rng.integers(1, schema.MAX_LINKS + 1)), "root")
    broken = seed % 3 == 0 and kind != 2  # Winograd shows NaN further than it is
    builder = ProgramBuilder()
    tree.build(builder, builder.input(h, w, ci))
    program = builder.finish()
    assert _links(program) == len(tree.all()) - 1
    frames = _frames(rng, (batch, h, w, ci), broken)
    _play(program, tree, frames, frames, rng)


@needs_engine
@pytest.mark.parametrize("seed", range(6))
def test_links_of_a_gather_equal_numpy(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    h, w, batch = int(rng.integers(1, 40)), int(rng.integers(1, 70)), int(rng.integers(1, 3))
    ci, index = 20, rng.integers(0, 40, int(rng.integers(1, 50)))
    tree = _tree(rng, _layer(rng, len(index), 8), int(rng.integers(0, schema.MAX_LINKS)), "root")
    builder = ProgramBuilder()
    x = builder.input(h, w, ci)
    tree.build(builder, builder.channels([x, builder.affine(x, 2.0)], index.tolist()))
    program = builder.finish()
    assert _links(program) == len(tree.all())
    frames = _frames(rng, (batch, h, w, ci), broken=seed % 2 == 0)
    _play(program, tree, frames, np.concatenate([frames, 2 * frames], -1)[..., index], rng)


def test_what_is_read_twice_or_leaves_is_stored() -> None:
    rng = np.random.default_rng(0)
    builder = ProgramBuilder()
    x = builder.input(16, 16, 16)
    depthwise = builder.conv(x, _layer(rng, 16, 8, 3, 16).spec("a"))
    other = builder.conv(x, _layer(rng, 16, 4, 3, 16).spec("b"))
    builder.output(builder.conv(depthwise, _layer(rng, 16, 8).spec("c")))
    builder.output(depthwise)
    builder.output(builder.conv(other, _layer(rng, 16, 8).spec("of other blocks")))
    assert _links(builder.finish()) == 0
