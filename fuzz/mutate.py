"""Ways to damage a file, drawn from a seeded generator."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml

Rng = np.random.Generator
_WORDS = (
    b"\0",
    b"\xff" * 4,
    b"\0\0\0\x80",
    b"\xff\xff\xff\x7f",
    b"\1\0\0\0",
    b"\0" * 16,
    b"9" * 20,
)
_TOKENS = (
    "", "-1", "0", "1e400", "nan", "-inf", "9" * 400, str(2**31), str(2**63), "0x10", "1_0", "-0.5",
    "{}", "[[]]", "'", '"', "a" * 5000, "../../x", "\0", "*x", "&x", "!!python/name:os",
    "${HOME}", "null", "true", "<<: *net", "&lt;", "\u2028", "\ufeff", "2001-99-99",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "../../x",
    "/etc/passwd", "\0", "a" * 5000, [], {}, [[]], {"a": []}, [1, 2, 3], ["x"], -0.5,
)  # fmt: skip


def _flip(data: bytearray, rng: Rng) -> None:
    for _ in range(int(rng.integers(1, 5))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def _cut(data: bytearray, rng: Rng) -> None:
    del data[int(rng.integers(len(data))) :]


def _overwrite(data: bytearray, rng: Rng) -> None:
    word = _WORDS[int(rng.integers(len(_WORDS)))]
    at = int(rng.integers(len(data)))
    data[at : at + len(word)] = word


def _insert(data: bytearray, rng: Rng) -> None:
    at = int(rng.integers(len(data)))
    data[at:at] = rng.bytes(int(rng.integers(1, 64)))


def _remove(data: bytearray, rng: Rng) -> None:
    at = int(rng.integers(len(data)))
    del data[at : at + int(rng.integers(1, 64))]


def _copy(data: bytearray, rng: Rng) -> None:
    size = int(rng.integers(1, 1 + min(256, len(data))))
    a, b = (int(n) for n in rng.integers(len(data), size=2))
    data[a : a + size] = data[b : b + size]


_BYTES: tuple[Callable[[bytearray, Rng], None], ...] = (
    _flip, _flip, _cut, _overwrite, _overwrite, _insert, _remove, _copy,
)  # fmt: skip


def mutate(data: bytes, rng: Rng, suffix: str = "") -> bytes:
    """A damaged copy; most of those of text files are changed as values, not as bytes.

    Args:
      data: the whole file.
      rng: draws the damage.
      suffix: of the file's name; tells what kind of text it is, if any.
    """
    if suffix in (".json", ".jsonl", ".yaml", ".toml", ".txt", ".xml") and rng.random() < 0.6:
        try:
            if suffix == ".json":
                return _mutate_json(json.loads(data), rng)
            # YAML holds JSON.
            if suffix == ".yaml" and rng.random() < 0.5:
                return _mutate_json(yaml.safe_load(data), rng)
            return _mutate_token(data.decode(), rng)
        except ValueError:
            pass
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if changed:
            _BYTES[int(rng.integers(len(_BYTES)))](changed, rng)
    return bytes(changed)


def _mutate_token(text: str, rng: Rng) -> bytes:
    """A word or number of the text replaced by another."""
    tokens = list(re.finditer(r"[\w.+-]+", text))
    if not tokens:
        return text.encode()
    start, end = tokens[int(rng.integers(len(tokens)))].span()
    token = _TOKENS[int(rng.integers(len(_TOKENS)))]
    return (text[:start] + token + text[end:]).encode()


def _mutate_json(content: Any, rng: Rng) -> bytes:
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        entries = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in entries:
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    if isinstance(content, dict | list):
        walk(content)
    if not places:
        return json.dumps(_VALUES[int(rng.integers(len(_VALUES)))]).encode()
    node, key = places[int(rng.integers(len(places)))]
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = _VALUES[int(rng.integers(len(_VALUES)))]
    return json.dumps(content).encode()
