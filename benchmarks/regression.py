"""Whether today's engine is as fast as the stored one, against the dense runtimes of the same run.

    python -m benchmarks.regression NET.onnx --preset yolox --video VIDEO [--store]

Milliseconds depend on the machine and on what else it does; what is compared is the time reduction
against the fastest dense runtime, which both feel. Figures are stored per network, instruction set
and number of threads in docs/results/regression.json (`--store` writes today's). Exit code 1 where
one is lower than the stored one by more than `--slack`.
"""

import json
import pathlib
import sys
from collections.abc import Mapping

from benchmarks.real_networks import arguments, measure, table
from skipconv_jax import native, whole_files

STORED = pathlib.Path(__file__).parents[1] / "docs" / "results" / "regression.json"
Ratios = Mapping[str, float]


def slower(today: Ratios, stored: Ratios, slack: float) -> list[str]:
    """A line for every setting that lost more than a share of its ratio, or is missing."""
    lines = []
    for name, before in stored.items():
        now = today.get(name)
        if now is None:
            lines.append(f"{name}: {before:.2f}x is stored, but it was not measured")
        elif now < before * (1 - slack):
            lines.append(f"{name}: {now:.2f}x, was {before:.2f}x ({now / before - 1:+.0%})")
    return lines


def main() -> int:
    """Measures, compares or stores; returns the exit code."""
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--slack", type=float, default=0.15, help="share that noise may take")
    parser.add_argument("--store", action="store_true", help="keep today's figures")
    args = parser.parse_args()
    found = measure(args)
    print(table(args, found))
    today = {name: round(found.gain(name), 3) for name in found.spent}
    key = f"{args.network.stem} {native.isa()} {native.num_threads()} threads"
    known = json.loads(STORED.read_text()) if STORED.exists() else {}
    if args.store:
        text = json.dumps({**known, key: today}, indent=1, sort_keys=True) + "\n"
        whole_files.write_text(STORED, text)
        print(f"stored as {key!r}")
        return 0
    if key not in known:
        print(f"nothing is stored for {key!r}; run with --store on an engine that is good")
        return 1
    lost = slower(today, known[key], args.slack)
    print("\n".join(lost) or f"as fast as stored for {key!r}, within {args.slack:.0%}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
