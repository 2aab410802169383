"""Saved plans step as the plan they were saved from; damaged, cut and newer files are refused."""

import ctypes
import dataclasses
import shutil
import subprocess
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import skip
from skipconv_jax.native import available, build
from skipconv_jax.ops import InputNormGate
from skipconv_jax.plans import compile_plan, skc_file
from skipconv_jax.plans.saved import load_plan, save
from skipconv_jax.plans.skc_file import PlanFileError

pytestmark = pytest.mark.skipif(not available(), reason="the native engine is not built")
H, W = 24, 20


def _conv(x, kernel, stride):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _floats(pixels):
    return pixels.astype(np.float32) / np.float32(255)


def _network(kernels, x):
    x = jax.nn.relu(_conv(x, kernels["stem"], 2))
    y = jax.nn.relu(_conv(x, kernels["body"], 1)) + x
    return {"maps": [_conv(y, kernels["head"], 1), y], "mean": jnp.mean(y, (1, 2))}


@pytest.fixture(scope="module")
def plan():
    rng = np.random.default_rng(0)
    shapes = {"stem": (3, 3, 3, 16), "body": (3, 3, 16, 16), "head": (1, 1, 16, 5)}
    kernels = {k: jnp.asarray(rng.normal(0, 0.2, s), jnp.float32) for k, s in shapes.items()}
    net = skip(_network, gate=InputNormGate(0.02, block=4))
    x = jnp.zeros((1, H, W, 3))
    params, _ = net.init(kernels, x)
    return compile_plan(net, params, x)


@pytest.fixture(scope="module")
def pixels():
    """Bytes of a still scene in which a square moves."""
    rng = np.random.default_rng(1)
    frames = np.repeat(rng.integers(0, 256, (1, H, W, 3), dtype=np.uint8), 6, 0)
    for t in range(1, 6):
        frames[t, 4:9, 2 * t : 2 * t + 5] = rng.integers(0, 256, (5, 5, 3))
    return frames


@pytest.fixture(scope="module")
def expected(plan, pixels):
    """Outputs and masks per frame; the state is fresh before frame 4."""
    state, steps = plan.init_state(), []
    for frame in _floats(pixels):
        y, state, masks = plan.step(state, jnp.asarray(frame)[None])
        steps.append(jax.tree.map(np.asarray, (y, plan.fired(masks))))
    fired = [np.concatenate([m.ravel() for m in s[1].values()]).mean() for s in steps]
    assert fired[0] == 1
    assert all(0 < f < 0.9 for f in fired[1:])
    return steps


@pytest.fixture
def path(plan, tmp_path):
    save(plan, tmp_path / "net.skc")
    assert [p.name for p in tmp_path.iterdir()] == ["net.skc"]
    return tmp_path / "net.skc"


def test_a_loaded_plan_steps_to_the_bit(path, pixels, expected):
    loaded = load_plan(path)
    state = loaded.init_state()
    for frame, (y, fired) in zip(
        pixels.astype(np.float32) / np.float32(255), expected, strict=True
    ):
        got, state, masks = loaded.step(state, jnp.asarray(frame)[None])
        jax.tree.map(np.testing.assert_array_equal, (got, loaded.fired(masks)), (y, fired))
    state = loaded.reset(state)
    _, _, masks = loaded.step(state, jnp.asarray(frame)[None])
    assert all(np.all(np.asarray(m) == 1) for m in loaded.fired(masks).values())
    with pytest.raises(ValueError, match=r"`x` .* like the plan's \(=float32\[1,24,20,3\]\)"):
        loaded.apply(loaded.init_state(), jnp.zeros((1, W, H, 3)))


def test_a_plan_that_xla_runs_in_part_is_refused(tmp_path):
    net = skip(lambda k, x: jnp.sort(_conv(x, k, 1), -1), gate=InputNormGate(0.1))
    x = jnp.zeros((1, 8, 8, 3))
    params, _ = net.init(jnp.ones((3, 3, 3, 4)), x)
    with pytest.raises(ValueError, match=r"XLA runs a part of it:\n(.*\n)*.*sort"):
        save(compile_plan(net, params, x), tmp_path / "net.skc")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A plan of one convolution, of few bytes."""
    net = skip(lambda k, x: _conv(x, k, 1), gate=InputNormGate(0.1, block=4))
    x = jnp.zeros((1, 8, 8, 3))
    params, _ = net.init(jnp.ones((1, 1, 3, 4)), x)
    path = tmp_path_factory.mktemp("small") / "net.skc"
    save(compile_plan(net, params, x), path)
    return path.read_bytes()


def _flips(data):
    """The file with one bit of one byte changed, for every byte."""
    for at in range(len(data)):
        yield at, data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


def test_every_damaged_byte_is_noticed(small, tmp_path):
    """Also between the sections, where nothing would come of it."""
    path = tmp_path / "net.skc"
    for at, damaged in _flips(small):
        path.write_bytes(damaged)
        try:
            skc_file.read(path)
        except PlanFileError:
            continue
        pytest.fail(f"byte {at} of {len(small)} is not checked")


def test_every_damaged_byte_is_noticed_in_c(small):
    library = ctypes.CDLL(str(build.find_library()))
    library.skipconv_close.argtypes = [ctypes.c_void_p]
    opened = ctypes.c_void_p()

    def status(data):
        return library.skipconv_open_memory(data, ctypes.c_size_t(len(data)), ctypes.byref(opened))

    assert status(small) == 0
    library.skipconv_close(opened)
    missed = [at for at, damaged in _flips(small) if not status(damaged)]
    assert not missed


def test_sections_that_overlap_or_hide_bytes_are_refused(small, tmp_path):
    """A table with a right sum, of which two entries point at the same bytes."""
    library = ctypes.CDLL(str(build.find_library()))
    second = small[64:96]
    table = small[32:64] + small[32:36] + second[4:] + small[96:192]
    twice = small[32:36] + second[4:] + small[64:192]
    for made in (table, twice):
        data = small[:24] + zlib.crc32(small[:24] + made).to_bytes(4, "little") + small[28:32]
        data += made + small[192:]
        (tmp_path / "net.skc").write_bytes(data)
        with pytest.raises(PlanFileError, match=r"damaged: bytes between|no complete plan"):
            skc_file.read(tmp_path / "net.skc")
        opened = ctypes.c_void_p()
        assert library.skipconv_open_memory(data, ctypes.c_size_t(len(data)), ctypes.byref(opened))


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_cut_file_is_refused(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(PlanFileError, match=r"begin as one|is cut"):
        load_plan(path)


def _newer(data):
    head = data[:8] + (skc_file.VERSION + 1).to_bytes(4, "little") + data[12:24]
    return head + zlib.crc32(head + data[32:192]).to_bytes(4, "little") + data[28:]


def test_a_newer_file_and_another_engine_are_refused(path):
    saved, data = skc_file.read(path), path.read_bytes()
    path.write_bytes(_newer(data))
    with pytest.raises(PlanFileError, match="version 2, and this skipconv_jax reads up to 1"):
        load_plan(path)
    words = saved.words.copy()
    words[0] ^= 1
    skc_file.write(path, dataclasses.replace(saved, words=words))
    with pytest.raises(PlanFileError, match="another engine; save the plan again"):
        load_plan(path)


# -- without Python --------------------------------------------------------------------------------
_SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O1"]


def _run(*command, **options):
    return subprocess.run([str(c) for c in command], capture_output=True, check=False, **options)


@pytest.fixture(scope="module")
def example(tmp_path_factory, repository):
    """examples/stream_raw.c and the engine behind it, one instruction set, under the sanitizers."""
    cxx, folder = build.compiler(), tmp_path_factory.mktemp("c")
    cc = shutil.which("gcc") or shutil.which("clang")
    if cxx is None or cc is None:
        pytest.skip("no compiler")
    (folder / "probe.c").write_text("int main(void) { return 0; }\n")
    if _run(cc, *_SANITIZE, folder / "probe.c", "-o", folder / "probe").returncode:
        pytest.skip(f"{cc} has no sanitizer runtime here")
    library = build.export(folder)
    strict = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", *_SANITIZE, f"-I{folder}"]
    linked = [
        f"-L{folder}",
        "-lskipconv",
        f"-Wl,-rpath,{library.parent}",
        "-o",
        folder / "stream_raw",
    ]
    done = _run(cc, *strict, repository / "examples" / "stream_raw.c", *linked)
    assert not done.returncode, done.stderr.decode()
    return folder / "stream_raw"


def test_the_c_example_streams_a_pipe_to_the_bit(example, path, pixels, expected, tmp_path):
    done = _run(example, path, tmp_path / "results", "2", input=pixels.tobytes())
    assert not done.returncode, done.stderr.decode()
    wanted = [np.concatenate([a.ravel() for a in jax.tree.leaves(y)]) for y, _ in expected]
    results = np.fromfile(tmp_path / "results", np.float32).reshape(len(expected), -1)
    np.testing.assert_array_equal(results, wanted)
    blocks = [np.concatenate([m.ravel() for m in fired.values()]).mean() for _, fired in expected]
    assert done.stdout.decode().splitlines() == [
        f"frame {t}: {share:.3f} of the blocks computed" for t, share in enumerate(blocks)
    ]


def test_a_plan_of_channels_first_frames_is_saved_too(example, tmp_path):
    """As PyTorch's and ONNX's networks take them; the program gets the bytes as they come."""

    def network(kernel, x):
        x = jnp.transpose(x, (0, 2, 3, 1))
        return jnp.transpose(_conv(jax.nn.relu(_conv(x, kernel, 2)), kernel, 1), (0, 3, 1, 2))

    rng = np.random.default_rng(2)
    net = skip(network, gate=InputNormGate(0.02, block=4))
    x = jnp.zeros((1, 3, H, W))
    params, _ = net.init(jnp.asarray(rng.normal(0, 0.3, (3, 3, 3, 3)), jnp.float32), x)
    plan = compile_plan(net, params, x)
    assert min(len(plan.channels_first), len(plan.leave_first)) > 0, "else it is no test of them"
    save(plan, tmp_path / "net.skc")
    loaded = load_plan(tmp_path / "net.skc")
    assert [t.shape for t in (*loaded.inputs, *loaded.outputs)] == [(3, H, W), (3, 12, 10)]
    clip = rng.integers(0, 256, (3, 3, H, W), dtype=np.uint8)
    clip[1:, :, 6:] = clip[0, :, 6:]
    state, mine, wanted = plan.init_state(), loaded.init_state(), []
    for frame in _floats(clip):
        y, state, masks = plan.step(state, jnp.asarray(frame)[None])
        got, mine, fired = loaded.step(mine, jnp.asarray(frame)[None])
        pair = (y, plan.fired(masks)), (got, loaded.fired(fired))
        jax.tree.map(np.testing.assert_array_equal, *pair)
        wanted.append(np.ravel(y))
    assert 0 < np.mean(next(iter(loaded.fired(fired).values()))) < 1
    rgb = clip.transpose(0, 2, 3, 1).tobytes()
    done = _run(example, tmp_path / "net.skc", tmp_path / "results", "1", input=rgb)
    assert not done.returncode, done.stderr.decode()
    results = np.fromfile(tmp_path / "results", np.float32).reshape(len(clip), -1)
    np.testing.assert_array_equal(results, wanted)


def test_the_c_example_says_what_is_wrong(example, path, pixels):
    def _fails(*arguments, **options):
        done = _run(example, *arguments, **options)
        assert done.returncode == 1
        return done.stderr

    assert b"ended within a frame" in _fails(path, input=pixels.tobytes()[:-1])
    data = bytearray(path.read_bytes())
    data[-70] ^= 1
    path.write_bytes(data)
    assert b"damaged: section META" in _fails(path, input=b"")
    path.write_bytes(_newer(bytes(data)))
    assert b"version 2; this library reads up to 1" in _fails(path, input=b"")
    assert b"can't be opened" in _fails(path.with_name("nowhere.skc"), input=b"")
