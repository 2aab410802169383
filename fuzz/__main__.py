"""`python -m fuzz`: the whole campaign; `--short` is what CI runs; `kills` and `sanitize` more.

    python -m fuzz [--inputs 20000] [--seed 0] [--only NAME] [--out FOLDER]
    python -m fuzz --case "COCO boxes" 1234     one input again, with its traceback
    python -m fuzz kills [--training 50] [--preparing 50] [--looking 50] [--builds 20]
    python -m fuzz sanitize [--programs 300]

Exit code 1 where anything but "same", "refused" and "changed" came out.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from fuzz import campaign
from fuzz.readers import readers

_SHORT = 12
_FINE = ("same", "refused", "changed")


def _campaign(arguments: argparse.Namespace) -> int:
    chosen = [r for r in readers() if not arguments.only or arguments.only in r.name]
    weight = sum(r.weight for r in chosen)
    results, bad = {}, 0
    print(f"seed {arguments.seed}")
    for reader in chosen:
        count = max(1, round(arguments.inputs * reader.weight / weight))
        results[reader.name] = outcomes = campaign.run(reader, arguments.seed, count)
        for seed, outcome in outcomes:
            if outcome.kind not in _FINE:
                bad += 1
                print(f"  {reader.name}, --case {seed}: {outcome.kind}: {outcome.note}")
        print(campaign.table({reader.name: outcomes}).splitlines()[2], flush=True)
    text = campaign.table(results)
    print(text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "table.md").write_text(text + "\n", encoding="utf-8")
        rows = [
            {"reader": name, "seed": seed, "kind": outcome.kind, "note": outcome.note}
            for name, outcomes in results.items()
            for seed, outcome in outcomes
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (arguments.out / "outcomes.jsonl").write_text(lines, encoding="utf-8")
    return 1 if bad else 0


def _short(seed: int) -> int:
    """In this process, a few inputs of each quick reader."""
    bad = 0
    for reader in readers():
        with tempfile.TemporaryDirectory() as tmp:
            log = Path(tmp, "log")
            campaign.worker(reader.name, seed, _SHORT, log)
            rows = [json.loads(line) for line in log.read_text().splitlines()]
        for row in rows:
            if row.get("kind", "same") not in _FINE:
                bad += 1
                print(f"{reader.name}, --case {row['seed']}: {row['kind']}: {row['note']}")
    print(f"{_SHORT} inputs of each reader from seed {seed}: {bad} bad")
    return 1 if bad else 0


def _case(name: str, seed: int) -> int:
    reader = next(r for r in readers() if r.name == name)
    with tempfile.TemporaryDirectory() as tmp:
        example = Path(tmp, "example")
        example.mkdir()
        reader.make(example)
        campaign.damage(reader, example, Path(tmp, "case"), seed)
        print(reader.read(Path(tmp, "case")))
    return 0


def main() -> int:
    """Parses the command line and runs what it names."""
    if sys.argv[1:2] == ["kills"]:
        from fuzz import kills

        return kills.main(sys.argv[2:])
    if sys.argv[1:2] == ["sanitize"]:
        from fuzz import sanitize

        return sanitize.main(sys.argv[2:])
    parser = argparse.ArgumentParser("python -m fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose name holds this")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--case", nargs=2, metavar=("READER", "SEED"))
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, first, count, log = arguments.worker
        campaign.worker(name, int(first), int(count), Path(log))
        return 0
    if arguments.case:
        return _case(arguments.case[0], int(arguments.case[1]))
    return _short(arguments.seed) if arguments.short else _campaign(arguments)


if __name__ == "__main__":
    sys.exit(main())
