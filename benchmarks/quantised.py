"""A trained detector in int8: how its detections agree with those in float32.

    python -m benchmarks.quantised NET.onnx --preset yolox --video VIDEO [--file int8.onnx]

Calibrated on frames spread over the video, compared on others between them. By onnxruntime's
quantiser (written to --file) and by `skipconv_jax.quantize`; both are evaluated in integers, dense.
Needs onnxruntime.
"""

import argparse
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax import compile_plan, onnx, quantize, skip
from skipconv_jax.presets import PRESETS
from skipconv_jax.program.walk import find_sites
from skipconv_jax.streaming.sources import Source
from skipconv_jax.tasks.given.experiment import GivenExperiment, configuration, from_onnx, given
from skipconv_jax.viz.tables import markdown


def spread(experiment: GivenExperiment, video: str, every: int, start: int) -> np.ndarray:
    """Every so many frames of a video from one on, as the network takes them, `(T, 1, ...)`."""
    prepare = jax.jit(experiment.task.prepare if experiment.task else PRESETS["yolox"].prepare)
    found = [
        np.asarray(prepare(jnp.asarray(experiment.fit(f.image)[None])))
        for f in Source(video)
        if f.image is not None and f.index >= start and (f.index - start) % every == 0
    ]
    return np.stack(found)


def write_qdq(source: pathlib.Path, target: pathlib.Path, clip: np.ndarray) -> None:
    """The file quantised by onnxruntime: weights int8 per channel, activations uint8, min-max."""
    import onnx as onnx_package
    from onnx import version_converter
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization import QuantType as Types
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self._left: Iterator[Any] = iter({name: x} for x in clip)

        def get_next(self) -> Any:
            return next(self._left, None)

    with tempfile.TemporaryDirectory() as folder:
        ready = str(pathlib.Path(folder) / "ready.onnx")
        model = onnx_package.load(str(source))
        if model.opset_import[0].version < 13:
            # Scales per channel need it.
            model = version_converter.convert_version(model, 13)
        onnx_package.save(model, ready)
        quant_pre_process(ready, ready)
        quantize_static(
            ready,
            str(target),
            Reader(model.graph.input[0].name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=Types.QUInt8,
            weight_type=Types.QInt8,
        )


def dense_plan(fn: Any, variables: Any, x: Any) -> Any:
    """(variables, x) to outputs, in integers where the network is quantised."""
    net = skip(fn, [("*", None)])
    params, _ = net.init(variables, x)
    plan = compile_plan(net, params, x, engine="folded", precision="int8")
    return jax.jit(lambda x: plan.apply({}, x)[0])


def agreement(
    experiment: GivenExperiment, wanted: list[Any], got: list[Any]
) -> tuple[float, float, int, float]:
    """AP and AP@.5 against float32, boxes to be found, and the mean error of outputs."""
    read = jax.jit(experiment.read)
    stacked = [
        jax.tree.map(lambda *a: np.stack(a), *[jax.device_get(read(y)) for y in outputs])
        for outputs in (got, wanted)
    ]
    labels, scorer = experiment.answers(stacked[1]), experiment.scorer()
    scorer.update(stacked[0], labels)
    scores = scorer.result()
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    error = float(np.mean([np.abs(a - b).mean() for a, b in pairs]))
    return scores["ap"], scores["ap50"], int((labels["labels"] >= 0).sum()), error


def run(args: argparse.Namespace) -> str:
    """The table."""
    network = from_onnx(str(args.network))
    experiment = given(network, "detection", args.preset, configuration(network))
    clip = spread(experiment, args.video, args.every * 4, args.every // 2)
    frames = spread(experiment, args.video, args.every, 0)
    dense = jax.jit(lambda x: network.fn(network.variables, x))
    wanted = [jax.device_get(dense(x)) for x in frames]
    rows = []

    def add(name: str, variables: Any, fn: Any) -> None:
        began = time.perf_counter()
        play = dense_plan(fn, variables, frames[0])
        got = [jax.device_get(play(x)) for x in frames]
        ap, ap50, objects, error = agreement(experiment, wanted, got)
        rows.append([name, f"{100 * ap:.2f}", f"{100 * ap50:.2f}", str(objects), f"{error:.5f}"])
        print(*rows[-1], f"({time.perf_counter() - began:.0f} s)", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        path = args.file or pathlib.Path(folder) / "int8.onnx"
        write_qdq(args.network, path, clip)
        add("onnxruntime, per channel, min-max", *onnx.load(path))
    for ranges in args.ranges:
        for keep in args.keep:
            found = quantize(network.fn, network.variables, clip, ranges=ranges, keep=keep)
            add(f"quantize, {ranges}, {keep} left in float", *found)
            if found[1].kept:
                print("left in float:", *found[1].kept)
    count = len(find_sites(network.fn, network.variables, frames[0]))
    title = f"{args.network.name}, {count} convolutions, {len(clip)} frames to calibrate, "
    head = ["int8 by", "AP against float32", "AP@.5", "boxes", "mean error of outputs"]
    return f"{title}{len(frames)} compared\n\n" + markdown(head, rows)


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("network", type=pathlib.Path)
    parser.add_argument("--preset", default="yolox", choices=sorted(PRESETS))
    parser.add_argument("--video", required=True)
    parser.add_argument("--every", type=int, default=16, help="compare every so many frames")
    parser.add_argument("--ranges", nargs="*", default=["min_max", "percentile", "mean_square"])
    parser.add_argument("--keep", nargs="*", type=int, default=[0], help="left in float")
    parser.add_argument("--file", type=pathlib.Path, help="where the QDQ file is written")
    print(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
