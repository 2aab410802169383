"""What the experiments' commands say where they can't do what they are asked."""

import importlib

import pytest

NAMES = ("table1", "table3", "table4", "table5", "figure4", "figure8", "figure12")


def test_bad_options_are_one_line(folder, capsys):
    module = importlib.import_module("paper.table5")
    code = module.main(["--quick", "--workdir", str(folder), "--config", "nowhere.py"])
    assert code == 1
    assert capsys.readouterr().err.startswith("error: `config` (='nowhere.py')")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_stored_is_one_line(name, tmp_path, capsys):
    module = importlib.import_module(f"paper.{name}")
    assert module.main(["--quick", "--stored", "--workdir", str(tmp_path / "empty")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: `workdir`")
    assert error.endswith("run without --stored.")
