#!/usr/bin/env python3
"""The package as a new user meets it: a new environment, no compiler, a video at the end.

    .ci/clean.py dist/skipconv_jax-*x86_64.whl
    .ci/clean.py dist/*.whl --python python3.13 --video VIDEO --onnx NET.onnx --preset yolox
    .ci/clean.py . --compiler                      # from source, the engine built at installation
    .ci/clean.py dist/*.whl --extras               # then every extra

Prints what each step took and the time from `pip install` to the first annotated video; fails
where the native engine is not in use. Without --video it writes a short one and takes a network of
one convolution (`--fn`), which needs no extra. It imports no package: it runs in a bare chroot too.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

NETWORK = """
import jax


def network():
    kernel = jax.random.normal(jax.random.key(0), (8, 3, 3, 3)) / 5
    return kernel, lambda kernel, x: jax.lax.conv(x, kernel, (2, 2), "SAME")
"""
VIDEO = """
import av, numpy as np

with av.open("clip.mp4", "w") as container:
    stream = container.add_stream("mpeg4", rate=25, width=320, height=180, pix_fmt="yuv420p")
    still = np.random.default_rng(0).integers(0, 256, (180, 320, 3), np.uint8)
    for t in range(25):
        frame = still.copy()
        frame[60:100, 8 * t : 8 * t + 40] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
    container.mux(stream.encode())
"""
# What each extra is for; without the extra it is one line that names it.
NEEDS = {
    "onnx": ["skipconv", "stream", "clip.mp4", "--onnx", "net.onnx"],
    "models": ["python", "-c", "import skipconv_jax.models"],
    "data": ["skipconv", "prepare", "--help"],
    "train": ["skipconv", "train", "--config", "hrnet_synthetic", "--help"],
    "tensorboard": ["python", "-c", "from skipconv_jax.extras import *; require('tensorboardX')"],
    "serve": ["skipconv", "serve", "cameras.yaml"],
}
CAMERAS = """
network: {onnx: net.onnx}
cameras: [{name: a, address: clip.mp4}]
api: {port: 8787}
"""


class Environment:
    """A new virtual environment in which no compiler is found, unless one is wanted."""

    def __init__(self, folder: pathlib.Path, python: str, compiler: bool) -> None:
        self.folder, self.bin = folder, folder / "venv" / "bin"
        folder.mkdir(parents=True)
        path = [str(self.bin), *([os.environ["PATH"]] if compiler else [])]
        # What pip may need to reach its index stays; what steers Python, JAX or compilers goes.
        kept = {
            k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_", "HOME", "TMP"))
        }
        self.env = {**kept, "PATH": os.pathsep.join(path), "JAX_PLATFORMS": "cpu"}
        subprocess.run(
            [python, "-m", "venv", folder / "venv"],
            check=True,
            env={**self.env, "PATH": os.environ["PATH"]},
        )
        if not compiler:
            found = [
                c
                for c in ("cc", "gcc", "g++", "clang", "c++")
                if shutil.which(c, path=str(self.bin))
            ]
            assert not found, found

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        """Runs a program of the environment in its folder."""
        program = self.bin / command[0]
        done = subprocess.run(
            [program, *command[1:]], cwd=self.folder, env=self.env, capture_output=True, text=True
        )
        if check and done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done

    def install(self, what: pathlib.Path, extra: str = "") -> float:
        """Seconds of `pip install WHAT[EXTRA]`."""
        since = time.monotonic()
        self.run("pip", "install", "--quiet", f"{what.resolve()}{f'[{extra}]' if extra else ''}")
        return time.monotonic() - since


def stream(made: Environment, given: argparse.Namespace) -> tuple[dict, float]:
    """The summary of `skipconv stream` and the seconds it took."""
    if given.video:
        video, network = given.video.resolve(), ["--onnx", str(given.onnx.resolve())]
        network += ["--preset", given.preset] if given.preset else []
    else:
        made.run("python", "-c", VIDEO)
        (made.folder / "mine.py").write_text(NETWORK)
        made.env["PYTHONPATH"] = str(made.folder)
        video, network = "clip.mp4", ["--fn", "mine:network", "--size", "180,320"]
    since = time.monotonic()
    done = made.run(
        "skipconv",
        "stream",
        str(video),
        *network,
        "--max_frames",
        str(given.frames),
        "--out",
        "out",
    )
    seconds = time.monotonic() - since
    summary = json.loads(done.stdout)
    assert summary["engine"].startswith("native"), summary["engine"]
    assert list((made.folder / "out").glob("*.mp4")), "no annotated video"
    return summary, seconds


def extras(given: argparse.Namespace, folder: pathlib.Path) -> None:
    """Every extra: the command it is for is one line without it, and runs with it."""
    bare = Environment(folder / "bare", given.python, given.compiler)
    bare.install(given.what)
    for extra, command in NEEDS.items():
        made = Environment(folder / extra, given.python, given.compiler)
        for where in (bare, made):
            (where.folder / "net.onnx").write_bytes(b"")
            (where.folder / "clip.mp4").write_bytes(b"")
            (where.folder / "cameras.yaml").write_text(CAMERAS)
        without = bare.run(*command, check=False).stderr
        line = re.search(r"`\w+` is not installed; run `pip install '([^']*)'`\.\n$", without)
        alone = without.count("\n") == 1 or command[0] == "python"  # commands say nothing else
        took = made.install(given.what, extra)
        with_it = made.run(*command, check=False).stderr
        found = "is not installed" not in with_it and "Traceback" not in with_it
        said = line.group(1) if line and alone else repr(without[-300:])
        here = f"there after {took:.0f} s" if found else repr(with_it[-300:])
        print(f"{extra:12} {said:32} {here}", flush=True)
        if not (line and alone and found):
            raise SystemExit(1)
        shutil.rmtree(made.folder)


def main() -> None:
    """Installs, streams, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "what",
        nargs="+",
        type=pathlib.Path,
        help="wheels (this machine's is taken) or a source tree",
    )
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--compiler", action="store_true", help="leave the PATH as it is")
    parser.add_argument("--extras", action="store_true", help="also try every extra")
    parser.add_argument("--video", type=pathlib.Path)
    parser.add_argument("--onnx", type=pathlib.Path)
    parser.add_argument("--preset", default="")
    parser.add_argument("--frames", type=int, default=25)
    given = parser.parse_args()
    machine = os.uname().machine
    fitting = [p for p in given.what if p.suffix != ".whl" or machine in p.name]
    if len(fitting) != 1:
        raise SystemExit(
            f"`what` (={given.what}) must hold one wheel for {machine}, or a source tree"
        )
    given.what = fitting[0]
    with tempfile.TemporaryDirectory() as tmp:
        made = Environment(pathlib.Path(tmp, "first"), given.python, given.compiler)
        installed = made.install(given.what, "onnx" if given.onnx else "")
        version = "import sys, jax; print('Python', sys.version.split()[0], 'jax', jax.__version__)"
        versions = made.run("python", "-c", version).stdout.strip()
        summary, streamed = stream(made, given)
        engine = re.sub(r" \(.*", "", summary["engine"])
        compilers = "with" if given.compiler else "without"
        print(f"{versions}, {given.what.name}, {compilers} a compiler: {engine}")
        print(
            f"pip install {installed:.1f} s, then {summary['frames']} annotated frames "
            f"{streamed:.1f} s: {installed + streamed:.1f} s to the first annotated video",
            flush=True,
        )
        if given.extras:
            extras(given, pathlib.Path(tmp))


if __name__ == "__main__":
    main()
