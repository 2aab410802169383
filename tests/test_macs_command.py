"""`python -m skipconv_jax.macs`: the table of a configuration's network, printed and as JSON."""

import json

import pytest

from skipconv_jax.macs.__main__ import main


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch, repository):
    monkeypatch.chdir(repository)


def test_the_table_is_printed_and_written(tmp_path, capsys):
    path = tmp_path / "new" / "table.json"
    assert main(["--config", "configs/hrnet_jhmdb.py", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "10.1931 GMAC, gates 0.1" in printed
    assert "293 convolutions, 0 dense" in printed
    table = json.loads(path.read_text())
    assert table["macs"] == sum(row["macs"] for row in table["rows"]) == 10_193_076_224
    assert len(table["rows"]) == 293


def test_what_is_wrong_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main(["--config", "configs/none.py"]) == 2
    assert "error: `config` (='configs/none.py') must be an existing .py file" in (
        capsys.readouterr().err
    )
    assert main(["--config", "configs/hrnet_synthetic.py", "--json", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err
