"""Greedy rank selection as AIMET does it: every layer alone first, then one score for all.

Each layer is compressed alone to several cost ratios and the network scored, without fine-tuning.
Then one score is sought that every layer has to reach alone; each layer takes its cheapest
candidate that does, or stays dense. The highest score whose network fits the target cost wins.

A candidate is scored with the low-rank kernel at the dense kernel's shape, which is the same
function: one compiled evaluation serves all layers and ranks.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from rich.progress import track

from skipconv_jax import whole_files
from skipconv_jax.compress.kernels import Kernel, get, replaced
from skipconv_jax.compress.svd import Factor, approximate, factored_macs, largest_rank, why_not

Tree = Any
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One layer compressed alone.

    Attributes:
      name: of the kernel.
      factor: how it was factored.
      macs: of the factored layer.
      score: of the network with only this layer factored; higher is better.
    """

    name: str
    factor: Factor
    macs: int
    score: float


@dataclasses.dataclass(frozen=True)
class Selection:
    """What the search chose.

    Attributes:
      plan: `{name: Factor}`; layers that are not in it stay dense.
      score: that every layer of the plan reached alone.
      ratio: multiply-accumulates of the compressed network by the dense one's.
    """

    plan: dict[str, Factor]
    score: float
    ratio: float

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        plan = {name: [f.method, f.rank] for name, f in self.plan.items()}
        return {"plan": plan, "score": self.score, "ratio": self.ratio}


def score_candidates(
    kernels: Mapping[str, Kernel],
    variables: Tree,
    method: str,
    score: Callable[[Tree], float],
    *,
    ratios: Sequence[float] = RATIOS,
    cache: Path | None = None,
    label: str = "",
    progress: bool = False,
) -> list[Candidate]:
    """Scores every layer at every ratio, alone.

    Args:
      kernels: of the network, from `find_kernels`.
      variables: of the dense network.
      method: 'spatial' or 'weight'.
      score: of variables in the dense network's shapes, on a subset of the data; higher is better.
      ratios: of a layer's multiply-accumulates.
      cache: JSON-lines file of scores; what it holds is not computed again.
      label: says what `score` measures and on what; a cache made under another is refused.
      progress: show a progress bar.

    Raises:
      ValueError: bad ratios, or a cache of other weights, method or label.
    """
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise ValueError(f"`ratios` (={ratios}) must lie between 0 and 1, e.g. {RATIOS}.")
    wanted = list(_wanted(kernels, method, ratios))
    known = ScoreCache(cache, _fingerprint(kernels, variables, method, label))
    found = []
    for name, factor in track(wanted, f"Ranks ({method})", disable=not progress):
        value = known.get(name, factor.rank)
        if value is None:
            path = kernels[name].path
            leaf = get(variables, path)
            changed = jnp.asarray(approximate(leaf, factor), leaf.dtype)
            value = known.put(name, factor.rank, float(score(replaced(variables, path, changed))))
        found.append(Candidate(name, factor, factored_macs(kernels[name], factor), value))
    return found


def _wanted(
    kernels: Mapping[str, Kernel], method: str, ratios: Sequence[float]
) -> Iterator[tuple[str, Factor]]:
    for name, kernel in kernels.items():
        if why_not(kernel, method):
            continue
        ranks = {largest_rank(kernel, method, ratio) for ratio in ratios} - {0}
        for rank in sorted(ranks):
            yield name, Factor(method, rank)


def select(
    candidates: Sequence[Candidate],
    kernels: Mapping[str, Kernel],
    total: int,
    target: float,
    tolerance: float = TOLERANCE,
) -> Selection:
    """The plan with the highest common score that fits the target.

    Args:
      candidates: from `score_candidates`.
      kernels: of the network.
      total: multiply-accumulates of the dense network.
      target: wanted share of them, in (0, 1).
      tolerance: by which the target may be exceeded.

    Raises:
      ValueError: a target out of range or out of reach.
    """
    if not 0 < target < 1:
        raise ValueError(f"`target` (={target}) must lie between 0 and 1.")
    scores = sorted({candidate.score for candidate in candidates})
    low, high = 0, len(scores) - 1
    best: Selection | None = None
    # The cost grows with the score that is asked for: bisection.
    while low <= high:
        middle = (low + high) // 2
        selection = _at(scores[middle], candidates, kernels, total)
        if selection.ratio <= target + tolerance:
            best, low = selection, middle + 1
        else:
            high = middle - 1
    if best is None:
        least = _at(scores[0], candidates, kernels, total).ratio if scores else 1.0
        raise ValueError(
            f"`target` (={target}) must be at least {least:.3f}, what the smallest candidates of "
            "all layers reach; raise it or offer smaller `ratios`."
        )
    return best


def _at(
    score: float, candidates: Sequence[Candidate], kernels: Mapping[str, Kernel], total: int
) -> Selection:
    cheapest: dict[str, Candidate] = {}
    for candidate in candidates:
        old = cheapest.get(candidate.name)
        if candidate.score >= score and (old is None or candidate.macs < old.macs):
            cheapest[candidate.name] = candidate
    saved = sum(kernels[name].macs - candidate.macs for name, candidate in cheapest.items())
    plan = {name: candidate.factor for name, candidate in cheapest.items()}
    return Selection(plan, score, (total - saved) / total)


def _fingerprint(kernels: Mapping[str, Kernel], variables: Tree, method: str, label: str) -> str:
    digest = hashlib.sha256(f"{method}\n{label}\n{list(kernels)}".encode())
    for leaf in jax.tree.leaves(variables):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


class _Head(msgspec.Struct):
    of: str = ""


class _Score(msgspec.Struct):
    name: str
    rank: int
    score: float


class ScoreCache:
    """Scores in a JSON-lines file: a first line that says of what, then one line a score."""

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self._path = path
        self._scores: dict[tuple[str, int], float] = {}
        if path is None:
            return
        if path.exists() and path.stat().st_size:
            self._read(path, fingerprint)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole_files.write_text(path, json.dumps({"of": fingerprint}) + "\n")

    def _read(self, path: Path, fingerprint: str) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"`cache` (={path}) is damaged ({error}); delete it.") from error
        # A kill may have left half a line: it is cut off, so that the next one starts whole.
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            whole_files.write_text(path, whole)
        first, *rest = whole.encode().splitlines() or [b"{}"]
        try:
            of = msgspec.json.decode(first, type=_Head).of
            rows = [msgspec.json.decode(row, type=_Score) for row in rest]
        except msgspec.DecodeError as error:
            raise ValueError(f"`cache` (={path}) is damaged ({error}); delete it.") from error
        if of != fingerprint:
            raise ValueError(
                f"`cache` (={path}) must hold scores of these weights, method and label; it holds "
                "others. Delete it or use another file."
            )
        self._scores = {(row.name, row.rank): row.score for row in rows}

    def get(self, name: str, rank: int) -> float | None:
        return self._scores.get((name, rank))

    def put(self, name: str, rank: int, score: float) -> float:
        self._scores[name, rank] = score
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, "rank": rank, "score": score}) + "\n")
        return score
