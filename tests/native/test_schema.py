"""The program's format is named once; a field that moves is noticed before anything runs."""

import struct

import numpy as np
import pytest

from skipconv_jax import native
from skipconv_jax.native import build, schema


def test_header_is_current() -> None:
    assert schema.header_path().read_text() == schema.header(), schema.stale()
    assert schema.stale() == ""


def test_a_swapped_field_fails_the_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    first, second, *rest = schema.OP
    monkeypatch.setitem(schema.RECORDS, "Op", (second, first, *rest))
    assert schema.stale().startswith("schema.h is not what schema.py says")
    monkeypatch.setattr(build, "_module", lambda file: schema)
    if not build.why_not():
        with pytest.raises(build.BuildError, match=r"schema\.h"):
            build.build(tmp_path)  # type: ignore[arg-type]


def test_format_depends_on_every_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = schema.digest()
    first, second, *rest = schema.TENSOR
    monkeypatch.setitem(schema.RECORDS, "Tensor", (second, first, *rest))
    swapped = schema.digest()
    prefix, (one, two, *more) = schema.ENUMS["Algo"]
    monkeypatch.setitem(schema.ENUMS, "Algo", (prefix, (two, one, *more)))  # type: ignore[arg-type]
    assert len({before, swapped, schema.digest()}) == 3


def test_records_pack_by_name() -> None:
    row = schema.pack(("a", "b[3]", "c:f"), {"c": 0.5, "b": [7, 8]})
    assert row == [0, 7, 8, 0, struct.unpack("<i", struct.pack("<f", 0.5))[0]]
    with pytest.raises(ValueError, match=r"\['d'\]"):
        schema.pack(("a",), {"d": 1})
    with pytest.raises(ValueError, match="at most 3 words"):
        schema.pack(("b[3]",), {"b": [1, 2, 3, 4]})


@pytest.mark.skipif(not native.available(), reason="the native engine is not built")
def test_program_of_another_format_is_refused() -> None:
    builder = native.ProgramBuilder()
    builder.output(builder.affine(builder.input(2, 2, 16)))
    program = builder.finish()
    words, weights, gates = program.constants
    frame = np.zeros((1, 2, 2, 16), np.float32)
    for bad in (words.at[0].add(1), words[:-1]):
        with pytest.raises(Exception, match="not a program of this version"):
            program.apply((bad, weights, gates), program.init_state(1), frame)


def test_unpack_is_the_inverse_of_pack():
    values = {"kind": 3, "a0": -0.5, "src": [7, 8, 9], "table": -1}
    found = schema.unpack(schema.OP, schema.pack(schema.OP, values))
    assert (found["kind"], found["a0"], found["table"]) == (3, -0.5, -1)
    assert found["src"] == (7, 8, 9, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="`words`"):
        schema.unpack(schema.OP, [0])
