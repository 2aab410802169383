"""Programs of the native engine against NumPy: values, masks, and what never may change."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import native, skip
from skipconv_jax.ops import InputNormGate, Previous
from skipconv_jax.plans.native import compile_plan

pytestmark = pytest.mark.skipif(not native.available(), reason="the native engine is not built")

_ACT = {
    "none": lambda v: v,
    "relu": lambda v: np.maximum(v, 0),
    "swish": lambda v: v / (1 + np.exp(-v)),
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
}


def _conv(x: np.ndarray, k: np.ndarray, c: dict[str, Any], groups: int) -> np.ndarray:
    out = jax.lax.conv_general_dilated(
        x,
        k,
        c["strides"],
        c["padding"],
        rhs_dilation=c["dilation"],
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return np.asarray(out)


def _case(rng: np.random.Generator) -> dict[str, Any]:
    """A random convolution that has an output."""
    while True:
        groups = int(rng.choice([1, 1, 1, 2, 4]))
        ci, co = (int(rng.integers(1, 6)) * groups * int(rng.choice([1, 8])) for _ in range(2))
        if rng.random() < 0.15:
            groups = co = ci
        square = rng.random() < 0.5
        case = {
            "shape": (int(rng.integers(1, 3)), *(int(v) for v in rng.integers(5, 34, 2)), ci),
            "co": co,
            "groups": groups,
            "window": (3, 3) if square else tuple(int(v) for v in rng.integers(1, 5, 2)),
            "strides": (1, 1) if square else tuple(int(v) for v in rng.integers(1, 3, 2)),
            "dilation": (1, 1) if square else tuple(int(v) for v in rng.integers(1, 3, 2)),
            "padding": [tuple(int(v) for v in rng.integers(0, 3, 2)) for _ in range(2)],
            "block": int(rng.integers(1, 12)),
            "threshold": float(rng.choice([0.0, 0.02, 0.05, 0.2])),
            "act": str(rng.choice(list(_ACT))),
        }
        names = ("padding", "window", "dilation")
        sizes = zip(case["shape"][1:3], *(case[n] for n in names), strict=True)  # type: ignore[call-overload]
        if all(n + sum(p) > (k - 1) * d for n, p, k, d in sizes):
            return case


def _block_max(scores: np.ndarray, block: int) -> np.ndarray:
    b, h, w = scores.shape
    pads = ((0, 0), (0, -h % block), (0, -w % block))
    padded = np.pad(scores, pads, constant_values=-1.0)
    split = padded.reshape(b, padded.shape[1] // block, block, padded.shape[2] // block, block)
    return np.asarray(split.max(axis=(2, 4)))


@pytest.mark.parametrize("seed", range(30))
def test_random_convolution_follows_eq_3(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c = _case(rng)
    (b, h, w, ci), block, groups = c["shape"], c["block"], c["groups"]
    kernel = (rng.normal(size=(*c["window"], ci // groups, c["co"])) * 0.3).astype(np.float32)
    bias = rng.normal(size=c["co"]).astype(np.float32)
    taps = int(np.prod(c["window"]))
    geometry = {k: c[k] for k in ("strides", "padding", "dilation")}
    builder = native.ProgramBuilder()
    x = builder.input(h, w, ci)
    gate = native.GateSpec("norm", [c["threshold"]], block, count=taps * ci)
    spec = native.ConvSpec(kernel, bias, "c", **geometry, groups=groups, act=c["act"], gate=gate)
    builder.output(builder.conv(x, spec))
    program = builder.finish()
    step = jax.jit(program.apply, donate_argnums=1)
    state = program.init_state(b)
    frame = rng.normal(size=c["shape"]).astype(np.float32)
    last = z = None
    for t in range(4):
        if t in (1, 3):
            top, left = rng.integers(0, h), rng.integers(0, w)
            frame = frame.copy()
            patch = frame[:, top : top + 5, left : left + 5]
            patch += rng.normal(size=patch.shape).astype(np.float32) * np.float32(0.5)
        (out,), state, masks = step(program.constants, state, jnp.asarray(frame))
        fired = np.asarray(program.fired(masks)["c"])
        if last is None or z is None:
            z, expected = _conv(frame, kernel, c, groups) + bias, np.ones_like(fired)
        else:
            r = frame - last
            ones = np.ones((*c["window"], 1, 1), np.float32)
            norm = _conv(np.abs(r).sum(-1, keepdims=True), ones, c, 1)[..., 0] / (taps * ci)
            expected = (_block_max(norm, block) > c["threshold"]).astype(np.float32)
            wide = expected.repeat(block, 1).repeat(block, 2)[:, : z.shape[1], : z.shape[2], None]
            z = z + wide * _conv(r, kernel, c, groups)
        last = frame
        np.testing.assert_array_equal(fired, expected)
        scale = max(1.0, float(np.abs(z).max()))
        np.testing.assert_allclose(out, _ACT[c["act"]](z), atol=2e-5 * scale, rtol=0)


def _small_program(policy: str = "previous") -> native.Program:
    """Two residual blocks, a strided convolution, an upsampled sum, a 1x1 head."""
    rng = np.random.default_rng(0)
    b = native.ProgramBuilder()
    names = (f"c{i}" for i in itertools.count())

    def conv(
        x: native.Ref, co: int, k: int = 3, stride: int = 1, act: str = "none", **kw: Any
    ) -> native.Ref:
        kernel = rng.normal(size=(k, k, x.c, co)).astype(np.float32) / (k * np.sqrt(x.c))
        pad = (k - 1) // 2
        spec = native.ConvSpec(
            kernel.astype(np.float32), np.ones(co, np.float32), next(names),
            strides=(stride, stride), padding=((pad, pad), (pad, pad)), policy=policy, act=act,
            gate=native.GateSpec("norm", [0.01], 4, count=k * k * x.c),
        )  # fmt: skip
        return b.conv(x, spec, **kw)

    x = b.input(24, 20, 3, raw=True)
    x = conv(x, 32, act="relu")
    for _ in range(2):
        x = conv(conv(x, 32, act="relu"), 32, act="relu", residual=x)
    low = conv(x, 48, stride=2, act="relu")
    up = conv(low, 32, k=1)
    b.output(conv(b.add([x, up], factors=[1, 2], act="relu"), 5, k=1))
    return b.finish()


def _frames(n: int, batch: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    frames = [rng.normal(size=(batch, 24, 20, 3)).astype(np.float32)]
    for _ in range(n - 1):
        frame = frames[-1].copy()
        y, x = rng.integers(0, 16), rng.integers(0, 14)
        frame[:, y : y + 6, x : x + 6] += rng.normal(size=(batch, 6, 6, 3)).astype(np.float32)
        frames.append(frame)
    return frames


def _run(program: native.Program, frames: list[np.ndarray], threads: int = 0) -> list[Any]:
    state, results = program.init_state(frames[0].shape[0]), []
    step = jax.jit(program.apply, donate_argnums=1, static_argnames="threads")
    for frame in frames:
        (y,), state, masks = step(program.constants, state, jnp.asarray(frame), threads=threads)
        results.append((np.asarray(y), np.asarray(masks)))
    return results


@pytest.mark.parametrize("policy", ["previous", "closed_loop", "accumulate"])
def test_number_of_threads_changes_no_bit(policy: str) -> None:
    program, frames = _small_program(policy), _frames(6)
    one, three = _run(program, frames, 1), _run(program, frames, 3)
    for (y1, m1), (y3, m3) in zip(one, three, strict=True):
        np.testing.assert_array_equal(m1, m3)
        np.testing.assert_array_equal(y1, y3)


@pytest.mark.parametrize("policy", ["previous", "closed_loop", "accumulate"])
def test_repeated_frame_fires_nothing_and_changes_no_bit(policy: str) -> None:
    frames = _frames(4)
    frames.append(frames[-1])
    *_, (before, _), (after, masks) = _run(_small_program(policy), frames)
    assert masks.sum() == 0
    np.testing.assert_array_equal(before, after)


def test_batch_equals_separate_streams() -> None:
    program, frames = _small_program(), _frames(5, batch=3)
    together = _run(program, frames)
    for s in range(3):
        alone = _run(program, [f[s : s + 1] for f in frames])
        for (y, m), (ys, ms) in zip(together, alone, strict=True):
            np.testing.assert_array_equal(y[s : s + 1], ys)
            np.testing.assert_array_equal(m[s : s + 1], ms)


def test_reset_makes_one_stream_fresh() -> None:
    program, frames = _small_program(), _frames(3)
    state = program.init_state(2)
    for frame in frames:
        _, state, _ = program.apply(program.constants, state, jnp.asarray(frame))
    state = program.reset(state, jnp.array([True, False]))
    (y,), _, masks = program.apply(program.constants, state, jnp.asarray(frames[0]))
    fresh, _ = _run(program, frames[:1])[0]
    np.testing.assert_array_equal(np.asarray(y)[0], fresh[0])
    assert float(masks[0].min()) == 1.0
    assert float(masks[1].min()) == 0.0


def test_scan_equals_frame_by_frame() -> None:
    program, frames = _small_program(), _frames(5)

    def body(state: jax.Array, x: jax.Array) -> tuple[jax.Array, Any]:
        (y,), state, masks = program.apply(program.constants, state, x)
        return state, (y, masks)

    _, (ys, masks) = jax.jit(lambda s, x: jax.lax.scan(body, s, x))(
        program.init_state(2), jnp.asarray(np.stack(frames))
    )
    for t, (y, m) in enumerate(_run(program, frames)):
        np.testing.assert_array_equal(ys[t], y)
        np.testing.assert_array_equal(masks[t], m)


def test_winograd_stays_near_direct() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 64, 40)).astype(np.float32)
    frame = rng.normal(size=(1, 19, 23, 64)).astype(np.float32)
    results = []
    for winograd in (False, True):
        b = native.ProgramBuilder(winograd=winograd)
        gate = native.GateSpec(block=5)
        spec = native.ConvSpec(kernel, name="c", padding=((1, 1), (1, 1)), gate=gate)
        b.output(b.conv(b.input(19, 23, 64), spec))
        program = b.finish()
        (y,), _, _ = program.apply(program.constants, program.init_state(1), jnp.asarray(frame))
        results.append(np.asarray(y))
    assert np.abs(results[0] - results[1]).max() < 5e-6 * np.abs(results[0]).max()


def test_state_of_another_program_is_refused() -> None:
    program = _small_program()
    state = jnp.zeros((2, program.state_size + 16), jnp.float32)
    with pytest.raises(Exception, match="state of another program"):
        program.apply(program.constants, state, jnp.asarray(_frames(1)[0]))


def test_status_names_the_backend() -> None:
    assert native.status().startswith("skipconv_jax: native engine, ")


def test_frame_of_few_channels_as_a_residual() -> None:
    """Its pixels are not padded, and what lies behind them must not count as change."""
    rng = np.random.default_rng(0)
    kernels = {n: rng.normal(size=(3, 3, 4, 4)).astype(np.float32) / 6 for n in "ab"}

    def network(variables: Any, x: jax.Array) -> jax.Array:
        def conv(h: jax.Array, name: str) -> jax.Array:
            return jax.lax.conv_general_dilated(
                h, variables[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        return conv(jax.nn.relu6(conv(x, "a") + x), "b")

    net = skip(network, gate=InputNormGate(0.02, block=4), policy=Previous())
    frame = rng.normal(size=(2, 19, 21, 4)).astype(np.float32)
    params, state = net.init({n: jnp.asarray(k) for n, k in kernels.items()}, frame)
    plan = compile_plan(net, params, frame)
    step, made = jax.jit(net.apply), plan.init_state()
    for t in range(6):
        frame = frame.copy()
        y, x = rng.integers(0, 14, 2)
        frame[:, y : y + 4, x : x + 4] += rng.normal(0, 0.3, (2, 4, 4, 4)).astype(np.float32)
        want, state = step(params, state, frame)
        got, made, masks = plan.step(made, frame)
        for name, fired in plan.fired(masks).items():
            np.testing.assert_array_equal(fired, state[name].fired, err_msg=f"{name} {t}")
        np.testing.assert_allclose(got, want, atol=1e-5)
    builder = native.ProgramBuilder()
    raw = builder.input(8, 8, 4, raw=True)
    spec = native.ConvSpec(kernels["a"], name="a", padding=((1, 1), (1, 1)))
    with pytest.raises(ValueError, match=r"raw.*drop `raw`"):
        builder.conv(raw, spec, residual=raw)
    with pytest.raises(ValueError, match=r"raw.*drop `raw`"):
        builder.affine(raw, 2.0)


def test_scratch_shared_with_a_frame_of_fewer_channels_is_cleared() -> None:
    """Of a wider map that lay there before, nothing stays in the lanes behind the frame's."""
    rng = np.random.default_rng(0)
    builder = native.ProgramBuilder()
    x = builder.input(24, 24, 3)
    gate = native.GateSpec("norm", [0.0], 2)
    first = native.ConvSpec(np.ones((1, 1, 3, 4), np.float32), name="a", gate=gate)
    builder.output(builder.conv(x, first))
    wide = builder.channels([builder.affine(x, 2.0)], [0, 1, 2, 2, 1, 0])
    kernel = rng.normal(size=(3, 3, 6, 4)).astype(np.float32)
    builder.output(
        builder.conv(wide, native.ConvSpec(kernel, name="b", padding=((1, 1), (1, 1)), gate=gate))
    )
    program = builder.finish()
    step, state = jax.jit(program.apply), program.init_state(1)
    frame = rng.normal(size=(1, 24, 24, 3)).astype(np.float32)
    geometry = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    for y, x_ in ((0, 0), (7, 3), (15, 12), (8, 20)):
        frame = frame.copy()
        frame[0, y, x_] += 1
        (_, made), state, _ = step(program.constants, state, frame)
        want = _conv(2 * frame[..., [0, 1, 2, 2, 1, 0]], kernel, geometry, 1)
        np.testing.assert_allclose(made, want, atol=2e-5)
