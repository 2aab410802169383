"""Hundreds of random programs under address and undefined-behaviour sanitizers, values compared."""

import concurrent.futures
import os
import pathlib
import shlex
import shutil
import struct
import subprocess

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import ClosedLoop, InputNormGate, compile_plan, native, skip
from skipconv_jax.native import build
from skipconv_jax.plans.saved import save
from tests.native.emulation import Case, random_case

_FLAGS = ["-std=c++17", "-O1", "-g1", "-pthread", "-Wno-psabi", "-ffp-contract=fast"]
# `python -m fuzz sanitize` runs other kinds, and more.
_KIND = os.environ.get("SANITIZE", "address,undefined")
_SANITIZE = [f"-fsanitize={_KIND}", "-fno-sanitize-recover=all"]
_CASES = int(os.environ.get("SANITIZED_PROGRAMS", "300"))


def _instruction_set() -> tuple[str, int, tuple[str, ...]]:
    """AVX2 where this CPU has it: its vectors end where 16-float padding does not hide mistakes."""
    info = pathlib.Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    isa = "avx2" if {"avx2", "fma"} <= set(flags) else "portable"
    return isa, *build.variants()[isa]


def _run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def _compiled(folder: pathlib.Path, cxx: str, *sources: pathlib.Path) -> list[str]:
    """Objects of sources for `_instruction_set()`, with the sanitizers."""
    isa, width, flags = _instruction_set()
    defines = [f"-DSKC_ISA={isa}", f"-DSKC_VW={width}", f"-I{build.source_dir()}", "-fPIC"]
    objects = [str(folder / f"{path.stem}.o") for path in sources]
    jobs = [
        [cxx, *_FLAGS, *_SANITIZE, *flags, *defines, "-c", str(path), "-o", out]
        for path, out in zip(sources, objects, strict=True)
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = list(pool.map(_run, jobs))
    assert not any(d.returncode for d in done), "\n".join(d.stderr for d in done)
    return objects


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, str, list[str]]:
    """A folder, a compiler, and the engine's objects compiled with the sanitizers."""
    folder, cxx = tmp_path_factory.mktemp("sanitized"), build.compiler()
    if cxx is None:
        pytest.skip("no C++ compiler")
    (folder / "probe.cpp").write_text("int main() { return 0; }\n")
    probe = _run([cxx, *_SANITIZE, str(folder / "probe.cpp"), "-o", str(folder / "probe")])
    if probe.returncode or _run([str(folder / "probe")]).returncode:
        pytest.skip(f"{cxx} has no sanitizer runtime here: {probe.stderr[:200]}")
    sources = [build.source_dir() / name for name in (*build.PER_ISA, "runtime/pool.cpp")]
    return folder, cxx, _compiled(folder, cxx, *sources)


@pytest.fixture(scope="module")
def driver(engine: tuple[pathlib.Path, str, list[str]]) -> pathlib.Path:
    """A program that runs cases on the engine."""
    folder, cxx, objects = engine
    own = _compiled(folder, cxx, pathlib.Path(__file__).with_name("sanitized.cpp"))
    target = folder / "driver"
    done = _run([cxx, *_SANITIZE, "-pthread", *objects, *own, "-o", str(target)])
    assert not done.returncode, done.stderr
    return target


def _record(case: Case) -> bytes:
    """One case as sanitized.cpp reads it."""
    program, streams = case.program, case.frames.shape[1]
    sizes = [int(np.prod(shape)) for shape in program.outputs]
    head = [streams, case.threads, len(case.frames), program.words.size, program.weights.size]
    head += [program.gates.size, int(np.prod(program.inputs[0])), len(sizes), *sizes]
    parts = [struct.pack(f"<{len(head)}i", *head)]
    parts += [program.words.tobytes(), program.weights.tobytes(), program.gates.tobytes()]
    for t, frame in enumerate(case.frames):
        parts += [case.fresh[t].astype(np.int32).tobytes(), frame.tobytes()]
        parts += [np.asarray(out, np.float32).tobytes() for out in case.outputs[t]]
        parts.append(case.masks[t].astype(np.float32).tobytes())
    return b"".join(parts)


def test_random_programs_under_sanitizers(driver: pathlib.Path, tmp_path: pathlib.Path) -> None:
    records = tmp_path / "cases.bin"
    cases = [_record(random_case(1000 + seed)) for seed in range(_CASES)]
    records.write_bytes(struct.pack("<i", _CASES) + b"".join(cases))
    done = _run([str(driver), str(records)], ASAN_OPTIONS="detect_leaks=0")
    assert not done.returncode, done.stdout[-2000:] + done.stderr[-6000:]
    assert done.stdout.strip() == f"{_CASES} cases, 0 wrong"


# The C library is compiled for one instruction set here; the names of the others end the program.
_OTHERS = """
#include <cstdlib>
#include "kernels/int8_api.h"
#include "runtime/program.h"
namespace skc {
#define RUN(name) void run_##name(const Call&, Pool&) { std::abort(); }
#define INT8(name) const QKernels& q_kernels_##name() { static const QKernels none{}; return none; }
%s
}
"""


@pytest.fixture(scope="module")
def stream_raw(engine: tuple[pathlib.Path, str, list[str]], repository: pathlib.Path) -> list[str]:
    """examples/stream_raw.c and the library behind it, both compiled with the sanitizers."""
    folder, cxx, objects = engine
    cc, ffmpeg = shutil.which("gcc") or shutil.which("clang"), shutil.which("ffmpeg")
    if cc is None or ffmpeg is None:
        pytest.skip("needs a C compiler and ffmpeg")
    isa = _instruction_set()[0]
    missing = [f"RUN({name})" for name in ("portable", "avx2", "avx512") if name != isa]
    sets = ("portable", "avx2", "avx_vnni", "avx512", "avx512_vnni")
    missing += [f"INT8({name})" for name in sets]
    (folder / "others.cpp").write_text(_OTHERS % "\n".join(missing))
    names = ("platform", "dispatch", "plan_file", "c_api")
    sources = [build.source_dir() / "runtime" / f"{name}.cpp" for name in names]
    own = _compiled(folder, cxx, *sources, folder / "others.cpp")
    library = folder / "libskipconv.so"
    example = repository / "examples" / "stream_raw.c"
    include = f"-I{build.source_dir() / 'include'}"
    here = [f"-L{folder}", f"-Wl,-rpath,{folder}", "-lskipconv", "-o", str(folder / "stream_raw")]
    for command in (
        [cxx, "-shared", "-pthread", *_SANITIZE, *objects, *own, "-o", str(library)],
        [cc, "-std=c11", "-O1", *_SANITIZE, include, str(example), *here],
    ):
        done = _run(command)
        assert not done.returncode, done.stderr[-4000:]
    return [ffmpeg, str(folder / "stream_raw"), isa]


def _clip(path: pathlib.Path, height: int, width: int) -> None:
    """A still of noise in which a square moves, as an MPEG-4 video."""
    still = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, width=width, height=height)
        stream.pix_fmt = "yuv420p"
        for t in range(6):
            frame = still.copy()
            frame[8:24, 4 * t : 4 * t + 12] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def test_the_c_example_streams_ffmpegs_pipe_under_sanitizers(
    stream_raw: list[str], tmp_path: pathlib.Path
) -> None:
    """As docs/guides/deployment.md pipes it; also with the library of Python, to the bit."""
    if not native.available():
        pytest.skip(native.status())
    ffmpeg, program, isa = stream_raw
    _clip(tmp_path / "clip.mp4", 64, 96)
    size = (32, 48)
    pipe = [ffmpeg, "-loglevel", "error", "-i", str(tmp_path / "clip.mp4"), "-vf", "scale=48:32"]
    pipe += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(pipe, capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, 1, *size, 3)
    assert len(frames) == 6

    def network(kernels: list[jax.Array], x: jax.Array) -> jax.Array:
        for kernel in kernels:
            x = jax.nn.relu(
                jax.lax.conv_general_dilated(
                    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
            )
        return x

    rng = np.random.default_rng(1)
    shapes = ((3, 3, 3, 8), (1, 1, 8, 16), (3, 3, 16, 4))
    kernels = [jnp.asarray(rng.normal(0, 0.3, shape), jnp.float32) for shape in shapes]
    net = skip(network, gate=InputNormGate(0.05, block=4), policy=ClosedLoop())
    x = jnp.zeros((1, *size, 3))
    params, _ = net.init(kernels, x)
    plan = compile_plan(net, params, x)
    save(plan, tmp_path / "net.skc")

    # The library of the tests has one instruction set, plan.step may have a better one here.
    plain = _exported(tmp_path)
    results = {}
    for name, command, env in (
        ("sanitized", program, {"SKIPCONV_JAX_ISA": isa, "ASAN_OPTIONS": "detect_leaks=1"}),
        ("plain", plain, {}),
    ):
        out = tmp_path / name
        line = f"{shlex.join(pipe)} | {shlex.join([command, str(tmp_path / 'net.skc'), str(out)])}"
        done = _run(["bash", "-o", "pipefail", "-c", line], **env)
        assert not done.returncode, done.stderr[-6000:]
        assert done.stdout.count("of the blocks computed") == len(frames)
        results[name] = np.fromfile(out, np.float32).reshape(len(frames), 1, *size, 4)
    state, shares = plan.init_state(), []
    for t, frame in enumerate(frames):
        x = jnp.asarray(frame.astype(np.float32) / np.float32(255))
        y, state, masks = plan.step(state, x)
        np.testing.assert_array_equal(results["plain"][t], y)
        # Another instruction set and other optimisation: other roundings.
        np.testing.assert_allclose(results["sanitized"][t], y, rtol=0, atol=1e-4)
        shares.append(np.mean([np.mean(m) for m in plan.fired(masks).values()]))
    assert shares[0] == 1
    assert all(0 < share < 0.9 for share in shares[1:])


def _exported(folder: pathlib.Path) -> str:
    """The example as the page compiles it, with the library that Python loads."""
    build.export(folder)
    example = pathlib.Path(__file__).parents[2] / "examples" / "stream_raw.c"
    target = folder / "stream_raw"
    command = ["cc", str(example), f"-I{folder}", f"-L{folder}", "-lskipconv"]
    done = _run([*command, f"-Wl,-rpath,{folder}", "-o", str(target)])
    assert not done.returncode, done.stderr
    return str(target)
