"""Random programs on ARM: cross-compiled, run by an emulator, values compared."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from skipconv_jax.native import build
from tests.native.emulation import random_case
from tests.native.test_sanitizers import _record

_CXX = "aarch64-linux-gnu-g++"
_FLAGS = ["-std=c++17", "-O1", "-static", "-pthread", "-Wno-psabi", "-ffp-contract=fast"]
_CASES = 60


def test_random_programs_on_neon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if shutil.which(_CXX) is None or emulator is None:
        pytest.skip("needs Debian's g++-aarch64-linux-gnu and qemu-user-static")
    monkeypatch.setenv("SKIPCONV_JAX_MACHINE", "aarch64")
    ((isa, (width, flags)),) = build.variants().items()
    assert isa == "neon"
    sources = [build.source_dir() / name for name in (*build.PER_ISA, "runtime/pool.cpp")]
    sources.append(Path(__file__).with_name("sanitized.cpp"))
    defines = [f"-DSKC_ISA={isa}", f"-DSKC_VW={width}", f"-I{build.source_dir()}"]
    command = [_CXX, *_FLAGS, *flags, *defines, *map(str, sources), "-o", str(tmp_path / "driver")]
    subprocess.run(command, check=True)
    records = [_record(random_case(2000 + seed)) for seed in range(_CASES)]
    (tmp_path / "cases").write_bytes(struct.pack("<i", _CASES) + b"".join(records))
    done = subprocess.run(
        [emulator, tmp_path / "driver", tmp_path / "cases"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"{_CASES} cases, 0 wrong"), done.stderr
