"""Every node that the engine takes, over frames that change in places, against XLA."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import native
from skipconv_jax.native.lower import Lowering
from skipconv_jax.native.operations import REFUSED, TAKEN, page, why_not
from skipconv_jax.ops.geometry import Conv
from skipconv_jax.program import fold as g
from skipconv_jax.program.fold.execute import execute_node

needs_engine = pytest.mark.skipif(not native.available(), reason="the native engine is not built")
_RNG = np.random.default_rng(0)
_X = (2, 13, 18, 12)


def _taps(n: int, size: int, taps: int) -> tuple[np.ndarray, np.ndarray]:
    index = np.sort(_RNG.integers(0, size, (n, taps)), axis=1)
    weight = np.ones((n, 1)) if taps == 1 else _RNG.normal(size=(n, taps))
    return index, weight.astype(np.float32)


def _conv_node(act: str, params: tuple[float, ...] = (), slope: Any = None) -> g.ConvNode:
    kernel = (_RNG.normal(size=(3, 3, 12, 12)) / 10).astype(np.float32)
    conv = Conv.make(_X, kernel.shape)
    bias = _RNG.normal(size=12).astype(np.float32)
    return g.ConvNode(
        (0, 0), 1, "c", conv, kernel, bias, 0.0, 0.0, None, 0, act, params, slope
    )  # fmt: skip


_SLOPE = np.linspace(-0.3, 0.5, 12).astype(np.float32)
_UNARY: dict[str, tuple[float, ...]] = {
    "clip": (-0.5, 0.25),
    "hard_sigmoid": (0.2, 0.5),
    "leaky_relu": (0.1,),
    "elu": (0.7,),
    **dict.fromkeys(("relu", "relu6", "swish", "logistic", "tanh", "hard_swish", "gelu"), ()),
    **dict.fromkeys(("gelu_tanh", "mish", "softplus", "erf", "exp", "abs", "square"), ()),
}
_NODES: dict[str, Callable[[], g.Node]] = {
    **{f"unary {n}": lambda n=n, p=p: g.UnaryNode((0,), 1, n, params=p) for n, p in _UNARY.items()},
    **{
        f"conv {n}": lambda n=n, p=p: _conv_node(n, p)
        for n, p in _UNARY.items()
        if n in g.ACTIVATIONS
    },
    "conv prelu": lambda: _conv_node("prelu", (), _SLOPE),
    "power": lambda: g.UnaryNode((0,), 1, "integer_pow", 3),
    "prelu": lambda: g.PReluNode((0,), 1, _SLOPE),
    "prelu of one slope": lambda: g.PReluNode((0,), 1, np.float32(0.2)),
    "slice": lambda: g.ChannelsNode((0,), 1, tuple(range(3, 9))),
    "shuffle": lambda: g.ChannelsNode((0, 0), 1, tuple(i // 2 + i % 2 * 12 for i in range(24))),
    "gather with zeros": lambda: g.ChannelsNode((0,), 1, (5, -1, -1, 11, 0, 5)),
    "gather of nine": lambda: g.ChannelsNode((0,) * 9, 1, tuple(_RNG.integers(0, 108, 40))),
    "concat of nine": lambda: g.ConcatNode((0,) * 9, 1),
    "pad": lambda: g.PadNode((0,), 1, ((2, 0), (1, 5)), -1.5),
    "crop": lambda: g.CropNode((0,), 1, (1, 2), (5, 7), (2, 2)),
    "nearest": lambda: g.ResizeNode((0,), 1, (_taps(26, 13, 1), _taps(36, 18, 1))),
    "linear": lambda: g.ResizeNode((0,), 1, (_taps(20, 13, 2), _taps(9, 18, 2))),
    "mixed taps": lambda: g.ResizeNode((0,), 1, (_taps(7, 13, 4), _taps(18, 18, 1))),
    "depth to space": lambda: g.DepthToSpaceNode((0,), 1, 2),
    "pixel shuffle": lambda: g.DepthToSpaceNode((0,), 1, 2, True),
    "space to depth": lambda: g.SpaceToDepthNode((0,), 1, 2),
    "pixel unshuffle": lambda: g.SpaceToDepthNode((0,), 1, 2, True),
    "softmax": lambda: g.SoftmaxNode((0,), 1),
    "spatial max": lambda: g.SpatialMaxNode((0,), 1),
    "spatial sum": lambda: g.SpatialSumNode((0,), 1),
    **{f"reduce {n}": lambda n=n: g.ReduceNode((0,), 1, n) for n in ("sum", "mean", "max", "min")},
    "max pool": lambda: g.PoolNode((0,), 1, "max", (3, 2), (2, 2), ((1, 1), (0, 1))),
    "wide max pool": lambda: g.PoolNode((0,), 1, "max", (5, 7), (1, 2), ((2, 2), (3, 3))),
    "padded mean pool": lambda: g.PoolNode((0,), 1, "mean", (2, 3), (2, 1), ((1, 1), (0, 2))),
    "mean pool": lambda: g.PoolNode((0,), 1, "mean_valid", (3, 3), (1, 1), ((1, 1), (1, 1))),
    "upsample": lambda: g.UpsampleNode((0,), 1, 3),
    "sum": lambda: g.SumNode((0,) * 9, 1, (1,) * 9, "leaky_relu", (0.5,) * 9, (0.1,)),
    "max with itself": lambda: g.BinaryNode((0, 0), 1, "max"),
}


def _frames(shape: tuple[int, ...]) -> list[np.ndarray]:
    """First, a patch of one stream, a still one, a patch of the other, all anew."""
    frames = [_RNG.normal(size=shape).astype(np.float32)]
    for stream in (0, None, 1):
        frame = frames[-1].copy()
        if stream is not None:
            frame[stream, 5:8, 9:13] += _RNG.normal(size=(3, 4, shape[-1])).astype(np.float32)
        frames.append(frame)
    return [*frames, _RNG.normal(size=shape).astype(np.float32)]


@needs_engine
@pytest.mark.parametrize("name", list(_NODES))
def test_node_equals_xla_and_passes_change_on(name: str) -> None:
    node = _NODES[name]()
    shape = (2, 14, 18, 12) if isinstance(node, g.SpaceToDepthNode) else _X
    aval = jax.ShapeDtypeStruct(shape, jnp.float32)

    def run(x: jax.Array) -> jax.Array:
        return execute_node(node, [x] * len(node.inputs), out.shape)[0]

    out = jax.ShapeDtypeStruct(_out_shape(node, shape), jnp.float32)
    avals = {0: aval, 1: out}
    assert why_not(node, avals) == ""
    builder = native.ProgramBuilder()
    lowering = Lowering(builder, avals, {}, {})
    lowering.input(0, [node])
    lowering.node(node)
    made = lowering.refs[1]
    kernel = _RNG.normal(size=(1, 1, made.c, 5)).astype(np.float32)
    readers = ("previous", "closed_loop", "accumulate")
    convs = [
        native.ConvSpec(kernel, name=p, policy=p, gate=native.GateSpec("norm", [0.0], 4))
        for p in readers
    ]
    builder.output(made)
    for spec in convs:
        builder.output(builder.conv(made, spec))
    program = builder.finish()
    step, dense = jax.jit(program.apply), jax.jit(run)
    state = program.init_state(2)
    before: list[Any] = []
    for t, frame in enumerate(_frames(shape)):
        outputs, state, masks = step(program.constants, state, frame)
        want = np.asarray(dense(frame)).reshape(2, made.h, made.w, made.c)
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(outputs[0], want, rtol=0, atol=3e-6 * scale, err_msg=f"{t}")
        read = want.astype(np.float64) @ kernel[0, 0]
        worst = max(1.0, float(np.abs(read).max()))
        for value, policy in zip(outputs[1:], readers, strict=True):
            np.testing.assert_allclose(value, read, rtol=0, atol=2e-5 * worst, err_msg=policy)
        fired = program.fired(masks)
        if t == 2:
            assert not any(np.any(fired[p]) for p in readers)
            for value, old in zip(outputs, before, strict=True):
                np.testing.assert_array_equal(value, old)
        if t in (1, 3):  # one stream changed, in one place
            for p in readers:
                assert not np.any(fired[p][1 if t == 1 else 0])
        before = [np.asarray(y) for y in outputs]


def _out_shape(node: g.Node, x: tuple[int, ...]) -> tuple[int, ...]:
    """Of the node's output, from the equations."""
    b, h, w, c = x
    match node:
        case g.ChannelsNode():
            return b, h, w, len(node.index)
        case g.ConcatNode():
            return b, h, w, c * len(node.inputs)
        case g.PadNode():
            (top, bottom), (left, right) = node.padding
            return b, h + top + bottom, w + left + right, c
        case g.CropNode():
            return b, *node.sizes, c
        case g.ResizeNode():
            return b, len(node.taps[0][0]), len(node.taps[1][0]), c
        case g.DepthToSpaceNode():
            return b, 2 * h, 2 * w, c // 4
        case g.SpaceToDepthNode():
            return b, h // 2, w // 2, c * 4
        case g.SpatialMaxNode() | g.SpatialSumNode():
            return b, c
        case g.ReduceNode():
            return b, h, w, 1
        case g.UpsampleNode():
            return b, h * node.factor, w * node.factor, c
        case g.PoolNode():
            sizes = [
                (n + sum(p) - k) // s + 1
                for n, p, k, s in zip((h, w), node.padding, node.window, node.strides, strict=True)
            ]
            return b, *sizes, c
    return x


def _refused(node: g.Node) -> str:
    return why_not(node, dict.fromkeys((0, 1), jax.ShapeDtypeStruct(_X, jnp.float32)))


def test_refusals_name_their_reason_in_one_line() -> None:
    many = (np.zeros((3, 17), int), np.ones((3, 17), np.float32))
    negative = dataclasses.replace(_conv_node("relu").conv, padding=((-1, 0), (0, 0)))
    cases = {
        "no kernel for cos": _refused(g.UnaryNode((0,), 1, "cos")),
        "a power of 9": _refused(g.UnaryNode((0,), 1, "integer_pow", 9)),
        "17 taps an axis, more than 16": _refused(g.ResizeNode((0,), 1, (many, many))),
        "negative padding": _refused(node=dataclasses.replace(_conv_node("relu"), conv=negative)),
    }
    for want, made in cases.items():
        assert made == want
    other = jax.ShapeDtypeStruct((2, 13, 12), jnp.float32)
    same = jax.ShapeDtypeStruct(_X, jnp.float32)
    node = g.UnaryNode((0,), 1, "relu")
    assert why_not(node, {0: other, 1: other}).startswith("float32[2, 13, 12] is no float32")
    whole = jax.ShapeDtypeStruct(_X, jnp.int32)
    assert why_not(node, {0: whole, 1: same}).startswith("int32[2, 13, 18, 12] is no float32")
    turned = jax.ShapeDtypeStruct((2, 18, 13, 12), jnp.float32)
    reshape = why_not(g.ReshapeNode((0,), 1), {0: same, 1: turned})
    assert reshape == "reshapes (13, 18, 12) to (18, 13, 12)"


def test_page_is_current(repository: Any) -> None:
    assert (repository / "docs" / "operations.md").read_text() == page(), (
        "run `python -m skipconv_jax.native.operations`"
    )


def test_every_node_has_an_entry() -> None:
    nodes = {n for n in vars(g).values() if isinstance(n, type) and issubclass(n, g.Node)}
    assert nodes - {g.Node, g.OtherNode} == {*TAKEN, *REFUSED}
