"""A trained detector in int8: how its detections agree with those in float32.

    python -m benchmarks.quantised NET.onnx --preset yolox --video VIDEO [--files int8.onnx]

Calibrated on frames spread over the video, compared on others between them. By onnxruntime's
quantiser, as QDQ files of others say (--files), and by `skipconv_jax.quantize`; all are evaluated
in integers, dense. Needs onnxruntime.
"""

import argparse
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence
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


def write_qdq(source: pathlib.Path, target: pathlib.Path, clip: Sequence[Any]) -> None:
    """The file quantised by onnxruntime: weights int8 per channel, activations uint8, min-max."""
    import onnx as onnx_package
    from onnx import version_converter
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization import QuantType as Types
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self._left: Iterator[Any] = iter({name: np.asarray(x)} for x in clip)

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
    params = {"model": variables, "gates": net.init_gates(variables, x)}
    plan = compile_plan(net, params, x, engine="folded", precision="int8")
    return jax.jit(lambda x: plan.apply({}, x)[0])


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Detections against those in float32, in percent.

    Attributes:
      ap: mean over classes, which one borderline box of a rare class moves by points.
      per_box: mean over classes weighed by their boxes.
      ap50: `ap` at IoU .5.
      boxes: to be found.
      error: mean error of outputs.
    """

    ap: float
    per_box: float
    ap50: float
    boxes: int
    error: float


def agreement(experiment: GivenExperiment, wanted: list[Any], got: list[Any]) -> Agreement:
    """How detections of outputs agree with those of others, taken for the truth."""
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
    found = labels["labels"][labels["labels"] >= 0]
    by_class = np.array([v for name, v in scores.items() if name.startswith("ap/")])
    per_box = np.average(by_class[found]) if by_class.size else scores["ap"]
    return Agreement(
        100 * scores["ap"], 100 * float(per_box), 100 * scores["ap50"], found.size, error
    )


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
        of = agreement(experiment, wanted, got)
        shares = [f"{share:.2f}" for share in (of.ap, of.per_box, of.ap50)]
        rows.append([name, *shares, str(of.boxes), f"{of.error:.5f}"])
        print(*rows[-1], f"({time.perf_counter() - began:.0f} s)", flush=True)

    for path in args.files:
        add(path.name, *onnx.load(path))
    with tempfile.TemporaryDirectory() as folder:
        if args.onnxruntime:
            path = pathlib.Path(folder) / "int8.onnx"
            write_qdq(args.network, path, list(clip))
            add("onnxruntime, per channel, min-max", *onnx.load(path))
    named: list[int | list[str]] = [args.left] if args.left else []
    for ranges in args.ranges:
        for keep in [*args.keep, *named]:
            found = quantize(network.fn, network.variables, clip, ranges=ranges, keep=keep)
            add(f"quantize, {ranges}, {len(found[1].kept)} left in float", *found)
            if found[1].kept:
                print("left in float:", *found[1].kept)
    count = len(find_sites(network.fn, network.variables, frames[0]))
    title = f"{args.network.name}, {count} convolutions, {len(clip)} frames to calibrate, "
    head = ["int8 by", "AP against float32", "per box", "AP@.5", "boxes", "mean error of outputs"]
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
    parser.add_argument("--left", nargs="*", help="a row with these left in float, by name")
    parser.add_argument("--no-onnxruntime", dest="onnxruntime", action="store_false")
    parser.add_argument("--files", nargs="*", type=pathlib.Path, default=[], help="QDQ files, too")
    print(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
