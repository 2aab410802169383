"""Turns are fair, most changed first where there are too many, and whole frames have a budget."""

import collections

import numpy as np
import pytest

from skipconv_jax.live.scheduler import FLOOR, Budget, Offer, Scheduler


def _turns(scheduler, offers, count):
    """How often each is picked where all of them always wait."""
    return collections.Counter(scheduler.pick(offers, 0.0).name for _ in range(count))


def test_streams_take_turns():
    scheduler = Scheduler({"a": 1, "b": 1, "c": 1})
    offers = [Offer(name) for name in "abc"]
    assert [scheduler.pick(offers, 0.0).name for _ in range(6)] == list("abcabc")


def test_priority_is_a_share():
    turns = _turns(Scheduler({"a": 3, "b": 1}), [Offer("a"), Offer("b")], 400)
    assert turns == {"a": 300, "b": 100}


def test_what_changed_most_comes_first_under_overload_and_nothing_starves():
    offers = [Offer("busy", 0.5), Offer("still", 0.0), Offer("half", 0.25)]
    turns = _turns(Scheduler(dict.fromkeys(("busy", "still", "half"), 1)), offers, 1600)
    whole = 1 + FLOOR + 0.5
    for name, weight in (("busy", 1), ("still", FLOOR), ("half", 0.5)):
        assert turns[name] == pytest.approx(1600 * weight / whole, abs=2)


def test_change_does_not_count_where_there_is_no_overload():
    scheduler = Scheduler({"busy": 1, "still": 1}, workers=2)
    turns = _turns(scheduler, [Offer("busy", 0.5), Offer("still", 0.0)], 100)
    assert turns == {"busy": 50, "still": 50}


def test_who_had_nothing_to_do_saves_nothing_up():
    scheduler = Scheduler({"a": 1, "b": 1})
    for _ in range(100):
        scheduler.pick([Offer("a")], 0.0)
    turns = _turns(scheduler, [Offer("a"), Offer("b")], 20)
    assert abs(turns["a"] - turns["b"]) <= 1


def test_all_streams_switching_at_once_are_staggered_and_the_rest_go_on():
    """40 cameras at 5 fps on workers of 250 frames a second; at t = 1 s, 30 of them go dark."""
    names = [f"camera{n}" for n in range(40)]
    scheduler = Scheduler(dict.fromkeys(names, 1.0), budget=Budget(10.0))
    waits: dict[str, list[float]] = collections.defaultdict(list)
    arrived = dict.fromkeys(names, 0.0)
    switched, whole, now = set(names[:30]), [], 0.0
    while now < 6:
        offers = []
        for name in names:
            if arrived[name] <= now:
                offers.append(Offer(name, 0.1, full=now >= 1 and name in switched))
        chosen = scheduler.pick(offers, now) if offers else None
        if chosen is not None:
            if chosen.full:
                whole.append(now)
                switched.discard(chosen.name)
            waits[chosen.name].append(now - arrived[chosen.name])
            arrived[chosen.name] = max(arrived[chosen.name] + 0.2, now)
        now += 0.004
    assert not switched, "every stream had its reference frame"
    assert len(whole) == 30
    assert np.diff(whole).min() > 0.09, "ten a second"
    assert whole[-1] < 1 + 30 / 10
    calm = [wait for name in names[30:] for wait in waits[name]]
    assert max(calm) < 0.2, "those that did not switch never missed a frame"


def test_no_budget_is_no_bound():
    budget = Budget(0.0)
    for _ in range(100):
        budget.spend()
    assert budget.wait(0.0) == 0


def test_a_budget_saves_up_no_more_than_its_burst():
    budget = Budget(2.0)
    assert budget.wait(100.0) == 0
    budget.spend()
    assert budget.wait(100.0) == pytest.approx(0.5)
    assert budget.wait(100.5) == 0


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"`priorities` \(=\{'a': 0\}\) must be above 0"):
        Scheduler({"a": 0, "b": 1})
    with pytest.raises(ValueError, match=r"`rate` \(=-1\) must be positive"):
        Budget(-1)
