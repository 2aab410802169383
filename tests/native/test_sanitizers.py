"""Hundreds of random programs under address and undefined-behaviour sanitizers, values compared."""

import concurrent.futures
import os
import pathlib
import struct
import subprocess

import numpy as np
import pytest

from skipconv_jax.native import build
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


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The engine and its driver, compiled with the sanitizers."""
    folder, cxx = tmp_path_factory.mktemp("sanitized"), build.compiler()
    if cxx is None:
        pytest.skip("no C++ compiler")
    (folder / "probe.cpp").write_text("int main() { return 0; }\n")
    probe = _run([cxx, *_SANITIZE, str(folder / "probe.cpp"), "-o", str(folder / "probe")])
    if probe.returncode or _run([str(folder / "probe")]).returncode:
        pytest.skip(f"{cxx} has no sanitizer runtime here: {probe.stderr[:200]}")
    isa, width, flags = _instruction_set()
    defines = [f"-DSKC_ISA={isa}", f"-DSKC_VW={width}", f"-I{build.source_dir()}"]
    sources = [build.source_dir() / name for name in (*build.PER_ISA, "runtime/pool.cpp")]
    sources.append(pathlib.Path(__file__).with_name("sanitized.cpp"))
    objects = [str(folder / f"{path.stem}.o") for path in sources]
    jobs = [
        [cxx, *_FLAGS, *_SANITIZE, *flags, *defines, "-c", str(path), "-o", out]
        for path, out in zip(sources, objects, strict=True)
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = list(pool.map(_run, jobs))
    done.append(_run([cxx, *_SANITIZE, "-pthread", *objects, "-o", str(folder / "driver")]))
    assert not any(d.returncode for d in done), "\n".join(d.stderr for d in done)
    return folder / "driver"


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
