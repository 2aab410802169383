"""Calibrated thresholds against the best single shared threshold, on frames neither was made on.

python -m benchmarks.calibration --checkpoint runs/demo/dense --data data/synthetic_long
"""

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.policy_data import arguments, labelled, network, pck_score, save, table
from skipconv_jax import skip
from skipconv_jax.calibration import Budget, Measured, Runner, choose, measure_sensitivity
from skipconv_jax.calibration.choose import choose_for_macs
from skipconv_jax.calibration.search import gate_params, net_for, settle
from skipconv_jax.ops import POLICIES, InputNormGate, OutputNormGate

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_SHARED = {
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
        "pck": score - seen.drop,
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
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--policy", default="reference", choices=sorted(POLICIES))
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--frames", type=int, default=32, help="to calibrate on, per stream")
    parser.add_argument("--held_out", type=int, default=64, help="to compare on, per stream")
    args = parser.parse_args()
    experiment, variables = network(args.config, args.checkpoint)
    policy, fn = POLICIES[args.policy](), experiment.predict
    clip = labelled(experiment, args.data, args.frames, args.streams)
    other = labelled(experiment, args.data, args.held_out, args.streams, first=args.streams)
    score = pck_score(experiment, other)
    points: list[dict[str, Any]] = []
    best = 0.0
    for kind, (gate, thresholds) in _SHARED.items():
        net = skip(fn, gate=gate(block=args.block), policy=policy, implementation="reference")
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
    net = net_for(fn, settled, InputNormGate, policy, found, "reference")
    runner = Runner(net, variables, list(other.frames), score)
    for share in _SHARES:
        price, _ = choose_for_macs(found, share * dense)
        seen = runner(gate_params(choose(found, price, blocks=settled)))
        points.append(_point("calibrated", price, seen, dense, best))
        print(points[-1], flush=True)
    _report(points, args, best)


def _report(points: list[dict[str, Any]], args: Any, best: float) -> None:
    curves = {how: [p for p in points if p["how"] == how] for how in {p["how"] for p in points}}
    rows = [
        [p["how"], f"{p['setting']:.3g}", f"{100 * p['share']:.1f} %", f"{p['error']:.4f}",
         f"{100 * p['pck']:.2f}"]
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
            f" frames, dense PCK {100 * best:.2f}. MACs: share of dense, reference frame left out. "
            "Error: relative, of the heatmaps, against the dense network.",
            table(["thresholds", "setting", "MACs", "error", "PCK@.2"], rows),
            "At equal MACs, against the better shared gate (interpolated):",
            table(["MACs", "shared: error", "calibrated: error", "gain"], gains),
        ]
    )
    save(args.out, f"calibration_{args.policy}", text, points)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for how in sorted(curves):
        ordered = sorted(curves[how], key=lambda p: p["share"])
        axes.plot(
            [100 * p["share"] for p in ordered], [p["error"] for p in ordered], "o-", label=how
        )
    axes.set(xlabel="MACs, % of dense", ylabel="relative output error", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.out / f"calibration_{args.policy}.png", dpi=120)


if __name__ == "__main__":
    main()
