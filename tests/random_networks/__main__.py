"""The long form: `python -m tests.random_networks --networks 200 --frames 256 --seed 0`.

Draws networks and streams, runs each on the native engine and through `net.apply`, and prints what
was compared, the flips at a threshold, what the engine refused and why, and every difference with
the smallest case found that still shows it. Exits with 1 where there is a difference.
"""

import argparse
import collections
import json
import sys
import time
from collections.abc import Sequence

from tests.random_networks.compare import Case, Outcome, compare, draw_case
from tests.random_networks.shrink import shrink

_LAYOUTS = {"nhwc": ("NHWC",), "nchw": ("NCHW",), "both": ("NHWC", "NCHW")}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.random_networks", description=__doc__)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--frames", type=int, default=256, help="of every stream")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first network")
    parser.add_argument("--layout", choices=_LAYOUTS, default="both")
    parser.add_argument(
        "--tries", type=int, default=60, help="smaller cases tried for a difference"
    )
    return parser


def _outcome(case: Case) -> Outcome:
    """A crash is a difference too: it has to be shrunk and named like one."""
    try:
        return compare(case)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return Outcome(None, 0, 0, 0.0, (f"crash: {text}",))


def _reason(text: str) -> str:
    """A refusal without the names of a network's own layers."""
    return text.split("[")[0].strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    args = _parser().parse_args(arguments)
    refused: collections.Counter[str] = collections.Counter()
    networks = stream_frames = flips = 0
    different: list[int] = []
    started = time.monotonic()
    for index in range(args.first, args.first + args.networks):
        case = draw_case(args.seed, index, args.frames, _LAYOUTS[args.layout])
        outcome = _outcome(case)
        if outcome.refused is not None:
            refused[_reason(outcome.refused)] += 1
            continue
        networks, flips = networks + 1, flips + outcome.flips
        stream_frames += outcome.compared
        if outcome.differences:
            different.append(index)
            kind = outcome.differences[0].startswith("crash")

            def fails(smaller: Case, kind: bool = kind) -> bool:
                found = _outcome(smaller).differences
                return bool(found) and found[0].startswith("crash") == kind

            small = shrink(case, fails, args.tries)
            print(f"DIFFERENCE --seed {args.seed} --first {index}: {outcome.differences[0]}")
            print(f"  smallest: {_outcome(small).differences}\n  {small}", flush=True)
        if index % 10 == 9:
            print(
                f"{networks} networks, {stream_frames} stream-frames, {flips} flips, "
                f"{len(different)} different, {sum(refused.values())} refused, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
    summary = {
        "networks": networks,
        "stream_frames": stream_frames,
        "flips": flips,
        "differences": different,
        "refused": dict(refused),
    }
    print(json.dumps(summary, indent=1))
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
