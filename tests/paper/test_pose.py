"""Tables and figures of the pose networks, and the store of finished rows that they share."""

import importlib
import json

import pytest


@pytest.mark.parametrize(
    "name", ["table1", "figure8", "table3", "table4", "figure36", "figure12", "table5"]
)
def test_writes_table_json_and_picture(name, folder, check):
    check(name, folder)


def test_table1_has_every_method_at_its_own_cost(run, folder):
    run("table1", folder)
    rows = json.loads((folder / "results" / "table1.json").read_text())["rows"]
    by_name = {row["method"]: row for row in rows}
    assert list(by_name) == [
        "HRNet, dense", "S-SVD", "W-SVD", "L0", "CC-image", "Skip-Conv", "S-SVD + Skip-Conv",
        "Skip-Conv, magnitudes"
    ]  # fmt: skip
    dense = by_name["HRNet, dense"]
    assert dense["gmac"] == pytest.approx(dense["dense_gmac"])
    for name in ("S-SVD", "W-SVD"):
        assert by_name[name]["gmac"] <= 0.601 * dense["gmac"]
    both = by_name["S-SVD + Skip-Conv"]
    assert both["gmac"] <= both["dense_gmac"] == pytest.approx(by_name["S-SVD"]["gmac"])
    assert by_name["Skip-Conv"]["gate_gmac"] > 0


def test_combined_shows_table1_s_row(run, folder, capsys):
    run("table1", folder)
    rows = json.loads((folder / "results" / "table1.json").read_text())["rows"]
    gmac = {row["method"]: f"{row['gmac']:.4f}" for row in rows}
    capsys.readouterr()
    module = importlib.import_module("paper.combined")
    options = ["--quick", "--workdir", str(folder), "--target", "0.6"]
    assert module.main(options) == 0
    shown = [line.split("|")[2].strip() for line in capsys.readouterr().out.splitlines()[2:]]
    assert shown == [gmac[name] for name in ("HRNet, dense", "S-SVD", "S-SVD + Skip-Conv")]
    assert module.main([*options[:-1], "2"]) == 1
    assert capsys.readouterr().err.startswith("error: `target` (=2.0) must lie between 0 and 1")


def test_a_second_run_trains_nothing(run, folder, monkeypatch):
    run("table1", folder)

    def refuse(*_, **__):
        pytest.fail("trained again")

    monkeypatch.setattr("paper.networks.train", refuse)
    for name in ("table1", "table3", "figure8"):
        assert run(name, folder) == 0


def test_stored_reports_what_there_is_and_names_the_rest(run, folder, tmp_path, capsys):
    run("table1", folder)
    module = importlib.import_module("paper.table1")
    options = ["--quick", "--stored", "--workdir", str(folder), "--out", str(tmp_path / "out")]
    row = next((folder / "rows").glob("cc-*.json"))
    held = row.read_text()
    row.unlink()
    try:
        assert module.main(options) == 0
    finally:
        row.write_text(held)
    assert f"NOT COMPUTED YET: `{row.stem}`" in (tmp_path / "out" / "table1.md").read_text()
    payload = json.loads((tmp_path / "out" / "table1.json").read_text())
    assert payload["missing"] == [row.stem]
    assert "CC-image" not in {r["method"] for r in payload["rows"]}
    capsys.readouterr()
    assert module.main(["--quick", "--stored", "--workdir", str(tmp_path / "empty")]) == 1
    assert "must hold 'dense'; run without --stored" in capsys.readouterr().err
