"""The regression benchmark's judgement, apart from its clock."""

import json

from benchmarks.regression import STORED, slower


def test_only_what_lost_more_than_the_slack_is_named():
    stored = {"all fire": 0.8, "still": 40.0, "video, 8x": 3.0}
    today = {"all fire": 0.7, "still": 33.0, "video, 8x": 9.0}
    assert slower(today, stored, 0.15) == ["still: 33.00x, was 40.00x (-18%)"]
    assert len(slower(today, stored, 0.1)) == 2
    assert slower({}, {"still": 2.0}, 0.5) == ["still: 2.00x is stored, but it was not measured"]
    assert slower(stored, stored, 0.0) == []


def test_stored_figures_are_ratios_by_network_and_machine():
    stored = json.loads(STORED.read_text())
    assert stored
    for key, ratios in stored.items():
        assert key.endswith("threads")
        assert {"all fire", "still"} <= set(ratios)
        assert all(ratio > 0 for ratio in ratios.values())
