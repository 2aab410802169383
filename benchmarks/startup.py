"""First-call time and peak memory of a network on a CPU, one process for each way to run it.

    python -m benchmarks.startup [--model hrnet_w32] [--json PATH]

Each process imports, makes the network, and runs frames until its memory stands still. The native
plan and `net.apply` run twice with JAX's persistent compilation cache, which a user turns on with

    export JAX_COMPILATION_CACHE_DIR=~/.cache/skipconv_jax/xla
    export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from skipconv_jax import whole_files
from skipconv_jax.viz.tables import markdown

WAYS = ("native plan", "net.apply", "XLA dense", "onnxruntime", "OpenVINO f32")
_CACHED = ("native plan", "net.apply")
_FRAMES = 4


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _network(name: str) -> Any:
    import jax

    from benchmarks.cpu import SIZES, make_model
    from skipconv_jax.models import init_variables

    model, size = make_model(name), SIZES[name]
    frame = jax.numpy.zeros((1, size, size, 3), jax.numpy.float32)
    return model, init_variables(model, jax.random.key(0), frame), frame


def _jax_way(way: str, name: str) -> dict[str, float]:
    import jax

    from skipconv_jax import skip
    from skipconv_jax.ops import InputNormGate, Previous
    from skipconv_jax.plans import compile_plan, once

    model, variables, frame = _network(name)
    net = skip(model.apply, gate=InputNormGate(1e-2, block=8), policy=Previous())
    imported, start = _peak(), time.perf_counter()
    state_bytes = 0
    if way == "XLA dense":
        dense = jax.jit(model.apply)

        def step(x: Any) -> Any:
            return dense(variables, x)
    elif way == "native plan":
        net = once(net, variables, frame)
        gates = net.init_gates(variables, frame)
        plan: Any = compile_plan(net, {"model": variables, "gates": gates}, frame)
        del variables
        kept = [plan.init_state()]
        state_bytes = plan.state_bytes()

        def step(x: Any) -> Any:
            y, kept[0], _ = plan.step(kept[0], x)
            return y
    else:
        params, state = net.init(variables, frame)
        apply, kept = jax.jit(net.apply, donate_argnums=1), [state]
        state_bytes = sum(a.nbytes for a in jax.tree.leaves(state))

        def step(x: Any) -> Any:
            y, kept[0] = apply(params, kept[0], x)
            return y

    jax.block_until_ready(step(frame))
    first = time.perf_counter() - start
    rng = np.random.default_rng(0)
    for _ in range(_FRAMES):
        x = jax.numpy.asarray(rng.normal(size=frame.shape), jax.numpy.float32)
        jax.block_until_ready(step(x))
    return {"first": first, "peak": _peak(), "before": imported, "state": state_bytes / 1e6}


def _runtime_way(way: str, path: str) -> dict[str, float]:
    """An ONNX file in a process without JAX."""
    from benchmarks.onnx_files import load

    start = time.perf_counter()
    run, shape = load(way, path, os.cpu_count() or 1)
    before = _peak()
    run(np.zeros(shape, np.float32))
    first = time.perf_counter() - start
    rng = np.random.default_rng(0)
    for _ in range(_FRAMES):
        run(rng.normal(size=shape).astype(np.float32))
    return {"first": first, "peak": _peak(), "before": before, "state": 0.0}


def _write_onnx(name: str, path: str) -> None:
    from benchmarks.peers import onnx_model, without_flattening
    from skipconv_jax.program import fold as graph

    model, variables, frame = _network(name)
    traced = graph.build(model.apply, variables, frame)
    whole_files.write_bytes(path, onnx_model(without_flattening(traced)))


def _child(*arguments: str, cache: str | None = None) -> dict[str, float]:
    environment = dict(os.environ)
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if cache:
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "benchmarks.startup", "--child", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str) -> list[dict[str, Any]]:
    """A row per way, and one more with a warm cache where there is one."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        onnx = f"{folder}/net.onnx"
        _child("onnx", name, onnx)
        for way in WAYS:
            target = name if way in (*_CACHED, "XLA dense") else onnx
            for warm in (False, True) if way in _CACHED else (False,):
                cache = f"{folder}/cache" if way in _CACHED else None
                row = _child(way, target, cache=cache)
                rows.append({"way": f"{way}, cached" if warm else way, **row})
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    header = [
        "process", "plan, compile and first frame, s", "peak MB", "of it before the plan, MB",
        "state MB per stream",
    ]  # fmt: skip
    return markdown(
        header,
        [
            [r["way"], f"{r['first']:.1f}", *(f"{r[n]:.0f}" for n in ("peak", "before", "state"))]
            for r in rows
        ],
    )


def main() -> None:
    """Parses arguments, measures, prints; `--child` is one process of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="hrnet_w32", choices=("hrnet_w32", "efficientdet_d0"))
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        way, target, *rest = args.child
        if way == "onnx":
            _write_onnx(target, rest[0])
            print("{}")
        else:
            run = _jax_way if way in (*_CACHED, "XLA dense") else _runtime_way
            print(json.dumps(run(way, target)))
        return
    rows = measure(args.model)
    print(f"{args.model}, batch 1, float32\n\n{table(rows)}")
    if args.json:
        whole_files.write_text(args.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
