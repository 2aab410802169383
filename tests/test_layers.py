"""Who may import whom: one row per package, with the reason. CI fails on an import that has no row.

A package may import what its row names, and itself. Entry points (`__main__`, `demo`, `commands`)
see everything, and everything may see the files of `EVERYBODY`, which see nothing.
"""

import ast
import collections
from pathlib import Path

import pytest

import skipconv_jax

PACKAGE = Path(skipconv_jax.__file__).parent
ROOT = PACKAGE.parent
EVERYBODY = {"checks", "entries", "extras", "json_files", "moved", "trusted", "whole_files"}
OURS = ("skipconv_jax", "benchmarks", "paper")
ENTRIES = {"__main__", "demo", "commands", "skipconv_jax"}

LAYERS = {
    "ops": ("", "one layer; it knows of no network, so that it serves any"),
    "program": ("ops", "what a traced network is; it knows of no engine"),
    "macs": ("ops program", "counts of sites and masks, whatever runs them"),
    "transform": ("ops program macs", "skips a program's sites; it is one way to run them"),
    "native": ("ops program transform", "the CPU engine; it knows programs, not tasks"),
    "onnx": ("ops program", "a file as a function; what is done with it is the user's"),
    "quantising": ("ops program", "another network from a float one; what runs it is a plan's"),
    "presets": ("", "what a detector's input and outputs mean, as data and pure functions"),
    "plans": ("ops program macs transform native", "a network on an engine, whatever it is for"),
    "warp": ("ops program transform", "policies of moving cameras, by the public seams"),
    "streaming": ("ops program macs transform native plans data", "frames through any plan"),
    "live": ("macs plans streaming tasks config viz", "many cameras through one plan, and out"),
    "tuning": (
        "ops program macs transform native plans streaming training",
        "gates for any network, chosen or trained",
    ),
    "models": ("", "plain networks, with no word of skipping"),
    "data": ("", "frames and labels; who uses them is not theirs to know"),
    "viz": ("data", "draws what it is given"),
    "training": ("ops program macs transform warp", "steps and loops of any task"),
    "compress": ("ops program training", "smaller networks to compare with"),
    "baselines": (
        "ops program macs transform plans streaming warp models training",
        "other ways to save work on video, run as skipped networks are",
    ),
    "config": ("ops transform tuning", "what a config file says of gates and policies"),
    "tasks": (
        "ops macs transform plans streaming warp models data viz training baselines config "
        "onnx presets",
        "what a network is for; commands see tasks by `tasks.base` alone",
    ),
}


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(path):
    """(line, imported module or object as a dotted name) of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} must import by the full name"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _part(name):
    """The first part below `skipconv_jax`, or the home of a public name of it; None for others."""
    parts = name.split(".")
    if parts[0] != "skipconv_jax":
        return None
    if len(parts) == 1:
        return "skipconv_jax"
    return skipconv_jax._HOME.get(parts[1], parts[1]).split(".")[0]


def test_every_package_has_a_row():
    found = {part for _, part in _modules()} - ENTRIES - EVERYBODY - {"__init__"}
    assert found - set(LAYERS) == set(), "add a row to LAYERS: what may it import, and why?"


@pytest.mark.parametrize("part", sorted(LAYERS))
def test_imports_go_down(part):
    allowed, why = LAYERS[part]
    below = {*allowed.split(), *EVERYBODY, part}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path, own in _modules()
        if own == part and path.name != "__main__.py"
        for line, name in _imports(path)
        if _part(name) is not None and _part(name) not in below
    ]
    assert not wrong, f"`{part}` ({why}) may import {allowed or 'nothing of ours'}:\n" + "\n".join(
        wrong
    )


def test_rows_go_down_too():
    """The table itself has no circle."""
    left = {part: set(allowed.split()) for part, (allowed, _) in LAYERS.items()}
    while left:
        free = {part for part, needs in left.items() if not needs & set(left)}
        assert free, f"these import each other: {sorted(left)}"
        left = {part: needs for part, needs in left.items() if part not in free}


def _private(name):
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("folder", ["skipconv_jax", "benchmarks", "paper", "configs", "."])
def test_no_private_name_of_another_module_is_used(folder):
    where = ROOT / folder
    files = sorted(where.glob("*.py") if folder == "." else where.rglob("*.py"))
    assert files
    wrong = []
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = collections.Counter()
        for line, name in _imports(path):
            names[name.rpartition(".")[2]] += 1
            if name.split(".")[0] in OURS and any(map(_private, name.split("."))):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
        modules = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS
            for alias in node.names
            if alias.name.islower()
        }
        wrong += [
            f"{path.relative_to(ROOT)}:{node.lineno} uses {node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
            and _private(node.attr)
        ]
    assert not wrong, "give it a public name, or keep it at home:\n" + "\n".join(wrong)
