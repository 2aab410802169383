"""Metric writers: lines of JSON, and progress on a terminal and elsewhere."""

import io
import json

from skipconv_jax.training.metrics import JsonLines, Progress, Writers


def test_json_lines_hold_what_was_written(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with Writers(JsonLines(path)) as writers:
        writers.write(1, {"loss": 0.5})
        writers.write(2, {"loss": float("nan")})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": "nan"}]


def test_resuming_drops_later_and_broken_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    writer = JsonLines(path, resume_at=2)
    writer.write(3, {})
    writer.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_rewritten_on_a_terminal_and_lines_elsewhere():
    terminal, file = _Terminal(), io.StringIO()
    for stream in (terminal, file):
        progress = Progress("dense", 0, 40, stream)
        for step in (10, 20, 30):
            progress.write(step, {"loss": 1.0})
        progress.close()
    assert terminal.getvalue().count("\n") == 1
    assert terminal.getvalue().count("\r") == 3
    assert file.getvalue().count("\n") == 3
    last = file.getvalue().splitlines()[-1]
    assert "dense 30/40" in last
    assert "left" in last
