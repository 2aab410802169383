"""Calibrated thresholds against the best single shared threshold, on frames neither was made on.

    python -m benchmarks.calibration --checkpoint runs/demo/dense --data data/synthetic_long
    python -m benchmarks.calibration --config configs/efficientdet_synthetic.py \\
        --checkpoint runs/efficientdet_synthetic/dense --name traffic
"""

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.policy_data import arguments, headline, labelled, left_dense, network, save
from skipconv_jax import skip, whole_files
from skipconv_jax.commands.calibrate import accuracy
from skipconv_jax.ops import POLICIES, POLICY_NAMES, InputNormGate, OutputNormGate
from skipconv_jax.tuning import Budget, Measured, Runner, choose, measure_sensitivity
from skipconv_jax.tuning.choose import choose_for_macs
from skipconv_jax.tuning.search import gate_params, net_for, settle
from skipconv_jax.viz.tables import markdown

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_SHARED: dict[str, tuple[Any, np.ndarray]] = {
    "input_norm": (InputNormGate, np.geomspace(0.008, 0.6, 8)),
    "output_norm": (OutputNormGate, np.geomspace(0.0006, 0.045, 8)),
}
_SHARES = (0.04, 0.08, 0.14, 0.2, 0.28, 0.38, 0.5)


def _point(kind: str, setting: float, seen: Measured, dense: float, score: float) -> dict[str, Any]:
    return {
        "how": kind,
        "setting": float(f"{setting:.4g}"),
        "share": seen.macs / dense,
        "error": seen.error,
        "quality": score - seen.drop,
    }


def at_equal_macs(points: list[dict[str, Any]], share: float) -> float:
    """Error at a share of the MACs, read off a curve (log error, linear between points)."""
    ordered = sorted(points, key=lambda p: p["share"])
    shares, errors = ([p[key] for p in ordered] for key in ("share", "error"))
    if not shares[0] <= share <= shares[-1]:
        return math.nan
    return float(np.exp(np.interp(share, shares, np.log(np.maximum(errors, 1e-9)))))


def main() -> None:
    """Prints and writes the table, the figures and the plot."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, default=None, help="default: the config's")
    parser.add_argument("--name", default="reference", help="of the files: calibration_<name>")
    parser.add_argument("--policy", default="closed_loop", choices=POLICY_NAMES)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--frames", type=int, default=32, help="to calibrate on, per stream")
    parser.add_argument("--held_out", type=int, default=64, help="to compare on, per stream")
    args = parser.parse_args()
    experiment, variables = network(args.config, args.checkpoint, args.data)
    policy, fn = POLICIES[args.policy](), experiment.predict
    clip = labelled(experiment, "train", args.frames, args.streams)
    other = labelled(experiment, "test", args.held_out, args.streams)
    if other.labels is None:
        raise AssertionError("a data set has labels")
    score = accuracy(experiment, other.labels)
    points: list[dict[str, Any]] = []
    best = 0.0
    for kind, (gate, thresholds) in _SHARED.items():
        net = skip(
            fn,
            left_dense(experiment),
            gate=gate(block=args.block),
            policy=policy,
            implementation="dense",
        )
        runner = Runner(net, variables, list(other.frames), score)
        dense, best = float(runner.dense_macs), score(runner.dense, None)
        for threshold in thresholds:
            seen = runner.shared(threshold)
            points.append(_point(f"shared {kind}", threshold, seen, dense, best))
            print(points[-1], flush=True)
    found = measure_sensitivity(
        fn, variables, list(clip.frames), InputNormGate, policy, blocks=(args.block,), probes=1
    )
    settled = settle(found, Budget("macs", 0.3 * dense))
    net = net_for(fn, settled, InputNormGate, policy, found, "dense")
    runner = Runner(net, variables, list(other.frames), score)
    for share in _SHARES:
        price, _ = choose_for_macs(found, share * dense)
        seen = runner(gate_params(choose(found, price, blocks=settled)))
        points.append(_point("calibrated", price, seen, dense, best))
        print(points[-1], flush=True)
    _report(points, args, headline(experiment), best)


def _report(points: list[dict[str, Any]], args: Any, figure: str, best: float) -> None:
    curves = {how: [p for p in points if p["how"] == how] for how in {p["how"] for p in points}}
    rows = [
        [p["how"], f"{p['setting']:.3g}", f"{100 * p['share']:.1f} %", f"{p['error']:.4f}",
         f"{100 * p['quality']:.2f}"]
        for p in points
    ]  # fmt: skip
    gains = []
    for p in sorted(curves["calibrated"], key=lambda p: p["share"]):
        others = [at_equal_macs(c, p["share"]) for how, c in curves.items() if how != "calibrated"]
        known = [error for error in others if not math.isnan(error)]
        if known:
            ratio = min(known) / p["error"]
            gains.append(
                [f"{100 * p['share']:.1f} %", f"{min(known):.4f}", f"{p['error']:.4f}",
                 f"{ratio:.2f}x"]
            )  # fmt: skip
    text = "\n\n".join(
        [
            f"Policy `{args.policy}`, block {args.block}, {args.streams} x {args.held_out} held-out"
            f" frames, dense {figure} {100 * best:.2f}. MACs: share of dense, reference frame left "
            "out. Error: relative, of the outputs, against the dense network.",
            markdown(["thresholds", "setting", "MACs", "error", figure], rows),
            "At equal MACs, against the better shared gate (interpolated):",
            markdown(["MACs", "shared: error", "calibrated: error", "gain"], gains),
        ]
    )
    save(args.out, f"calibration_{args.name}", text, points)
    shown, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for how in sorted(curves):
        ordered = sorted(curves[how], key=lambda p: p["share"])
        for axis, key, scale in ((axes[0], "error", 1), (axes[1], "quality", 100)):
            axis.plot(
                [100 * p["share"] for p in ordered],
                [scale * p[key] for p in ordered],
                "o-",
                label=how,
            )
    axes[1].axhline(100 * best, color="grey", linestyle=":", label="dense")
    axes[0].set(xlabel="MACs, % of dense", ylabel="relative output error", yscale="log")
    axes[1].set(xlabel="MACs, % of dense", ylabel=figure)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    with whole_files.writing(args.out / f"calibration_{args.name}.png") as partial:
        shown.savefig(partial, dpi=110)


if __name__ == "__main__":
    main()
