"""Greedy ranks: the search's choice against brute force, its cache, its refusals."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.compress import Candidate, Factor, find_kernels, score_candidates, select
from skipconv_jax.compress.svd import factored_macs, full_rank, largest_rank

RATIOS = (0.2, 0.4, 0.6, 0.8)


class Score:
    """How close the network's outputs stay to the dense ones, and how often that was asked."""

    def __init__(self, model, dense, x):
        self._run = jax.jit(lambda v: jnp.abs(model.apply(v, x) - model.apply(dense, x)).mean())
        self.calls = 0

    def __call__(self, variables):
        self.calls += 1
        return -float(self._run(variables))


@pytest.fixture
def problem(network):
    model, dense, x = network
    kernels, total = find_kernels(model.apply, dense, x)
    return kernels, total, dense, Score(model, dense, x)


def test_every_layer_is_scored_alone_at_the_largest_rank_that_fits(problem):
    kernels, _, dense, score = problem
    candidates = score_candidates(kernels, dense, "spatial", score, ratios=RATIOS)
    assert {c.name for c in candidates} == {"stem", "inner", "outer"}
    expected = {
        (name, largest_rank(kernels[name], "spatial", ratio))
        for name in ("stem", "inner", "outer")
        for ratio in RATIOS
    }
    assert {(c.name, c.factor.rank) for c in candidates} == {e for e in expected if e[1]}
    for c in candidates:
        assert c.macs == factored_macs(kernels[c.name], c.factor)
        if c.factor.rank == full_rank(kernels[c.name].conv, "spatial"):
            assert c.score == pytest.approx(0, abs=1e-5)
        else:
            assert c.score < 0
    by_rank = sorted((c.factor.rank, c.score) for c in candidates if c.name == "outer")
    assert by_rank[0][1] < by_rank[-1][1]


def brute_force(candidates, kernels, total, target):
    """The highest score s for which the cheapest candidates of score >= s fit the target."""
    best = None
    for s in {c.score for c in candidates}:
        macs = total
        for _, group in itertools.groupby(candidates, lambda c: c.name):
            fit = [c.macs for c in group if c.score >= s]
            macs -= (
                0 if not fit else kernels[next(iter(plan_names(candidates, fit)))].macs - min(fit)
            )
        if macs <= target * total and (best is None or s > best[0]):
            best = (s, macs / total)
    return best


def plan_names(candidates, macs):
    return {c.name for c in candidates if c.macs in macs}


@pytest.mark.parametrize("target", [0.5, 0.7, 0.9])
def test_select_is_the_best_common_score(problem, target):
    kernels, total, _, _ = problem
    rng = np.random.default_rng(7)
    candidates = [
        # Costs made distinct, scores not monotone in the rank.
        Candidate(name, Factor("spatial", rank), int(kernels[name].macs * rank / 10) + i, s)
        for i, name in enumerate(("stem", "inner", "outer"))
        for rank, s in zip(range(1, 9), rng.permutation(8) / 8 + i / 100, strict=True)
    ]
    chosen = select(candidates, kernels, total, target, tolerance=0.0)
    score, ratio = brute_force(candidates, kernels, total, target)
    assert chosen.score == pytest.approx(score)
    assert chosen.ratio == pytest.approx(ratio)
    assert chosen.ratio <= target
    for name, factor in chosen.plan.items():
        alone = {c.factor: c for c in candidates if c.name == name}
        assert alone[factor].score >= score
        assert all(c.macs >= alone[factor].macs for c in alone.values() if c.score >= score)


def test_cache_resumes_where_it_stopped(problem, tmp_path):
    kernels, _, dense, score = problem
    cache = tmp_path / "scores" / "spatial.jsonl"
    run = lambda s: score_candidates(  # noqa: E731
        kernels, dense, "spatial", s, ratios=RATIOS, cache=cache, label="two frames"
    )

    class Stops(Exception):
        pass

    def stops_at_five(variables):
        if score.calls == 5:
            raise Stops
        return score(variables)

    with pytest.raises(Stops):
        run(stops_at_five)
    with cache.open("a") as file:
        file.write('{"name": "ou')  # what a kill leaves
    resumed = run(score)
    assert score.calls == len(resumed)
    assert run(lambda v: pytest.fail("scored again")) == resumed
    assert resumed == score_candidates(kernels, dense, "spatial", score, ratios=RATIOS)


@pytest.mark.parametrize("change", ["weights", "method", "label"])
def test_cache_of_another_search_is_refused(problem, tmp_path, change):
    kernels, _, dense, _ = problem
    run = lambda dense, method, label: score_candidates(  # noqa: E731
        kernels, dense, method, lambda v: 0.0, ratios=(0.5,), cache=tmp_path / "c", label=label
    )
    run(dense, "spatial", "a")
    other = jax.tree.map(lambda leaf: leaf + 1, dense) if change == "weights" else dense
    with pytest.raises(ValueError, match="Delete it or use another file"):
        run(
            other,
            "weight" if change == "method" else "spatial",
            "b" if change == "label" else "a",
        )


def test_refuses_what_cannot_be_reached(problem):
    kernels, total, dense, _ = problem
    candidates = score_candidates(kernels, dense, "spatial", lambda v: 0.0, ratios=(0.5,))
    with pytest.raises(ValueError, match=r"`target` \(=0.05\) must be at least 0\.\d+"):
        select(candidates, kernels, total, 0.05)
    for target in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            select(candidates, kernels, total, target)
    with pytest.raises(ValueError, match="`ratios`"):
        score_candidates(kernels, dense, "spatial", lambda v: 0.0, ratios=(1.5,))


def test_factors_of_a_selection_are_json(problem):
    kernels, total, dense, _ = problem
    candidates = score_candidates(kernels, dense, "spatial", lambda v: 0.0, ratios=(0.5,))
    chosen = select(candidates, kernels, total, 0.9)
    names = [f.name for f in dataclasses.fields(chosen)]
    assert sorted(chosen.to_json()) == sorted(names)
    assert chosen.to_json()["plan"]["outer"] == ["spatial", chosen.plan["outer"].rank]
