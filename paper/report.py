"""Results as Markdown, JSON and a plot, side by side with what the paper reports."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from paper.setting import SEEDS, Row, Setting, commit
from skipconv_jax import whole_files
from skipconv_jax.viz.tables import markdown

matplotlib.use("Agg")
from matplotlib import pyplot as plt


@dataclasses.dataclass(frozen=True)
class Claim:
    """One of the paper's orderings, and whether it holds here.

    Attributes:
      text: what the paper finds.
      holds: whether the figures here agree.
      detail: the figures it was read from.
    """

    text: str
    holds: bool
    detail: str


@dataclasses.dataclass
class Report:
    """One table or figure of the paper and its counterpart.

    Attributes:
      name: of the files, and of the command: `python -m paper.<name>`.
      title: of the page.
      header: columns.
      lines: rows of the table, one cell per column.
      paper: rows of the paper's table, as cells, with their own header first.
      claims: orderings, read off the rows.
      rows: everything measured, for the JSON.
      notes: paragraphs on how to read it.
    """

    name: str
    title: str
    header: Sequence[str]
    lines: list[Sequence[str]]
    paper: Sequence[Sequence[str]]
    claims: list[Claim]
    rows: list[Row]
    notes: Sequence[str] = ()

    def write(self, setting: Setting) -> None:
        """Writes `<out>/<name>.md` and `.json`, and prints the table."""
        setting.out.mkdir(parents=True, exist_ok=True)
        command = f"python -m paper.{self.name}" + (" --quick" if setting.quick else "")
        if not setting.quick and setting.seeds != SEEDS:
            command += " --seeds " + " ".join(map(str, setting.seeds))
        table = markdown(self.header, self.lines)
        text = [f"# {self.title}", ""]
        if setting.quick:
            text += ["A toy network trained for a few steps: these figures mean nothing.", ""]
        text += ["## Here", "", table, ""]
        if setting.missing:
            names = ", ".join(f"`{key}`" for key in dict.fromkeys(setting.missing))
            text += [f"NOT COMPUTED YET: {names}. The command below computes them.", ""]
        text += ["## The paper", ""]
        text += [markdown(self.paper[0], self.paper[1:]), ""]
        text += ["## Reading", ""]
        for claim in self.claims:
            text.append(
                f"- {'holds' if claim.holds else 'DOES NOT HOLD'}: {claim.text} ({claim.detail})"
            )
        if not self.claims:
            text.append("- too few rows to read an ordering off")
        text += ["", *(line for note in self.notes for line in (note, ""))]
        pictures = sorted(p.name for p in setting.out.glob(f"{self.name}*.png"))
        text += [f"![{name}]({name})" for name in pictures]
        seeds = ", ".join(map(str, setting.seeds))
        text += ["", f"Command: `{command}`; commit {commit()}; seeds {seeds}.", ""]
        whole_files.write_text(setting.out / f"{self.name}.md", "\n".join(text))
        payload = {
            "command": command,
            "commit": commit(),
            "seeds": setting.seeds,
            "missing": setting.missing,
            "rows": self.rows,
            "paper": [list(row) for row in self.paper],
            # A comparison of NumPy figures is a NumPy bool, which JSON does not know.
            "claims": [
                dataclasses.asdict(claim) | {"holds": bool(claim.holds)} for claim in self.claims
            ],
        }
        path = setting.out / f"{self.name}.json"
        whole_files.write_text(path, json.dumps(payload, indent=1) + "\n")
        print(table)


def spread(row: Row, name: str, digits: int) -> str:
    """A figure, with the spread of its seeds where there are several."""
    text = f"{row[name]:.{digits}f}"
    return f"{text} ± {row[f'{name}_spread'] / 2:.{digits}f}" if f"{name}_spread" in row else text


def curves(
    series: Mapping[str, Sequence[Row]],
    path: Any,
    dense: Row,
    x: str = "gmac",
    y: str = "pck",
    labels: tuple[str, str] = ("GMAC / frame", "PCK@.2"),
) -> None:
    """Accuracy over cost, one line per method (the paper's Figure 5)."""
    figure, axis = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    for name, rows in series.items():
        if not rows:
            continue
        ordered = sorted(rows, key=lambda row: row[x])
        axis.plot([r[x] for r in ordered], [r[y] for r in ordered], marker="o", label=name)
    axis.plot([dense[x]], [dense[y]], "k*", ms=12, label="dense")
    axis.set(xlabel=labels[0], ylabel=labels[1])
    axis.set_xlim(left=0)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    with whole_files.writing(path) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)


def picture(path: Any, image: np.ndarray, colours: int = 128) -> None:
    """Writes a sheet of frames `(H, W, 3)` as a PNG of few colours: a tenth of the size."""
    palette = Image.fromarray(image).quantize(colours, dither=Image.Dither.NONE)
    palette.save(path, optimize=True)


def grouped_bars(groups: Mapping[str, Mapping[str, float]], path: Any, ylabel: str) -> None:
    """Bars per stage, one colour per run (the paper's Figure 8)."""
    figure, axis = plt.subplots(figsize=(8, 4), constrained_layout=True)
    width = 0.8 / len(groups)
    for i, (name, values) in enumerate(groups.items()):
        places = [j + i * width - 0.4 + width / 2 for j in range(len(values))]
        axis.bar(places, list(values.values()), width, label=name)
    names = list(next(iter(groups.values())))
    axis.set_xticks(range(len(names)), names, rotation=20)
    axis.set_ylabel(ylabel)
    axis.legend(fontsize=8)
    with whole_files.writing(path) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)


def best_at(rows: Sequence[Row], most: float, cost: str = "gmac", score: str = "pck") -> Row | None:
    """The most accurate row that costs at most `most`; None where none does."""
    fitting = [row for row in rows if row[cost] <= most * (1 + 1e-9)]
    return max(fitting, key=lambda row: row[score]) if fitting else None
