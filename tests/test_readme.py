"""What the README shows works as it is printed."""

import re

import pytest


def test_the_example_of_skipping_ones_own_network(repository, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    shares = [float(line.strip("[]")) for line in capsys.readouterr().out.split("\n") if line]
    assert shares == pytest.approx([1.0] + [0.0] * 8)
