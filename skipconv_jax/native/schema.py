"""The native program's format, named once; running this file writes csrc/runtime/schema.h.

A program is an array of 32-bit words: header, tensors, operations, a table of integers. Python
packs records by the names below and C++ reads them through structs generated from the same names.
The first word of a program is a hash of this format, so that a library never runs a program of
another one. Imports the standard library only: the build loads it by path.
"""

import hashlib
import pathlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CELL = 4  # side, in pixels, of the cells in which change is tracked
PANEL = 32  # output channels of one packed weight panel
MAX_SOURCES = 8
REGION = 8  # side of the regions that everything but convolutions is computed in
MAX_LINKS = 3  # operations behind another that are computed with it (see chains.py)

# Enum: prefix of its constants, names in order. C++ has `k` + prefix + the name in camel case.
ENUMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "OpKind": (
        "",
        (
            "input", "conv", "add", "pool", "affine", "channels", "spatial", "binary", "output",
            "window", "resize", "depth_to_space", "space_to_depth", "softmax", "reduce",
            # Of bytes, from and to them; those from `q_input` on are csrc/ops/op_q*.cpp.
            "q_input", "q_output", "q_conv", "q_sum", "q_mul", "q_mean", "q_max", "q_table",
            "q_gather", "quantize", "dequantize",
        ),
    ),
    # Those up to `clip` are clamps, and `a0`, `a1` their bounds.
    "Act": (
        "",
        (
            "none", "relu", "relu6", "clip", "swish", "sigmoid", "tanh", "hard_swish",
            "hard_sigmoid", "leaky_relu", "prelu", "elu", "gelu", "gelu_tanh", "mish", "softplus",
            "erf", "exp", "log", "abs", "sqrt", "rsqrt", "square",
        ),
    ),
    "Algo": ("", ("direct", "winograd", "depthwise", "grouped")),
    "Policy": ("", ("previous", "closed_loop", "accumulate")),
    "PoolKind": ("Pool", ("max", "mean", "mean_valid", "sum")),
    "SpatialKind": ("Spatial", ("mean", "sum", "max")),
    "BinaryKind": ("Binary", ("mul", "add", "sub", "div", "max", "min", "rsub", "rdiv")),
    "ReduceKind": ("Reduce", ("sum", "mean", "max", "min")),
    "Gate": ("", ("norm", "always", "linear", "magnitude")),
}  # fmt: skip

_LABELS = {
    "OpKind": "kind", "PoolKind": "pool", "SpatialKind": "spatial", "BinaryKind": "binary",
    "ReduceKind": "reduce",
}  # fmt: skip

# Records: `name` is an int32, `name[n]` an array, `name:f` a float32.
HEADER = (
    "format",  # of this file
    "n_tensors", "n_ops", "n_table",
    "state",  # floats of one stream's arena
    "masks",  # blocks of one stream
    "n_in", "n_out",
)  # fmt: skip

TENSOR = (
    "H", "W", "C", "Cs",
    "pt", "pl", "Hp", "Wp",  # the frame lies at (pt, pl) of [Hp][Wp][Cs]; the border stays zero
    "cur",  # values after this frame; offsets count floats of the arena, -1 is "not stored"
    "delta",  # change of this frame, zero where nothing changed; shared scratch, see `prev`
    "m",  # [Hp][Wp] sum over channels of |change|; shares the life of `delta` or of `old`
    "old",  # [H][W][Cs] values before this frame where m is not 0, for changed cells only; scratch
    "cells",  # {int flags[4]; bytes changed[ch * cw], stale[ch * cw]}
    "ch", "cw",
    "prev",  # tensor that used the scratch before: its changed cells are stale here
    "bytes",  # 1: a value is a byte, q less the least q of its type; `cur` alone is stored
    "zero",  # of bytes: what the border holds
)  # fmt: skip

OP = (
    "kind", "out",
    "res",  # tensor added before the activation, or -1
    "act", "a0:f", "a1:f",  # activation and its parameters
    "slope",  # offset of per-channel slopes in the weights
    "nsrc", "src[8]", "fh[8]", "fw[8]",  # sources, nearest upsampling factors
    "algo", "kh", "kw", "sh", "sw", "dh", "dw", "pt", "pl", "groups",
    "policy", "gate", "b", "nbh", "nbw",
    "z", "zpitch",  # pre-activation output, pitch of one row in floats
    "w", "bias",  # offsets in the weights
    "gp",  # offset in the gate parameters
    "mask",  # offset in the masks of one stream
    "ref", "acc",  # reference tiles, accumulated norms
    "sig",  # last threshold seen, last mask
    "io",  # external buffer
    "mode",  # which pool, binary, ...; columns of one tile of a convolution; 1: channels first
    "count",  # bytes of weights; runs of a `channels`; floats of an external buffer
    "top",  # largest |x| per block and channel of a scaled input
    "table",  # offset in the table of integers
    "mult",  # of bytes: offset of multipliers in the weights
    "lut", "entries",  # offset of a table of bytes, what was looked up in it less `shift`; or -1
    "shift",  # added to a rounded number
    "zeros[2]",  # of the sources, as they are stored
    "tail",  # first operation that is computed with this one, tile by tile; -1: none
    "next",  # the following one of the same input
    "head",  # operation that this one is computed with
    "first",  # 1: an output leaves channels first
)  # fmt: skip

RECORDS = {"Header": HEADER, "Tensor": TENSOR, "Op": OP}


def fields(record: Sequence[str]) -> list[tuple[str, int, str]]:
    """Name, number of words and type ('i' or 'f') of each field."""
    found = []
    for text in record:
        name, _, kind = text.partition(":")
        name, _, size = name.partition("[")
        found.append((name, int(size.rstrip("]") or 1), kind or "i"))
    return found


def words(record: Sequence[str]) -> int:
    """Length of a record."""
    return sum(size for _, size, _ in fields(record))


def pack(record: Sequence[str], values: Mapping[str, int | float | Sequence[int]]) -> list[int]:
    """The words of one record; fields without a value are 0.

    Raises:
      ValueError: a value without a field, or of another length.
    """
    known = fields(record)
    if unknown := sorted(set(values) - {name for name, _, _ in known}):
        raise ValueError(
            f"`values` has {unknown}, which the record does not; add them to schema.py."
        )
    out: list[int] = []
    for name, size, kind in known:
        value = values.get(name, 0)
        row = list(value) if isinstance(value, Iterable) else [value]
        if len(row) > size:
            raise ValueError(f"`{name}` (={row}) must be at most {size} words.")
        for v in [*row, *[0] * (size - len(row))]:
            out.append(struct.unpack("<i", struct.pack("<f", v))[0] if kind == "f" else int(v))
    return out


def unpack(record: Sequence[str], words: Sequence[int] | Any) -> dict[str, Any]:
    """The values that `pack` made these words of; arrays are tuples.

    Raises:
      ValueError: words of another length.
    """
    known = fields(record)
    if len(words) != sum(size for _, size, _ in known):
        raise ValueError(f"`words` (={len(words)} of them) must be {sum(s for _, s, _ in known)}.")
    values, at = {}, 0
    for name, size, kind in known:
        code = f"<{size}{kind}"
        row = struct.unpack(
            code, struct.pack(f"<{size}i", *(int(w) for w in words[at : at + size]))
        )
        values[name] = row if size > 1 else row[0]
        at += size
    return values


def names(enum: str) -> tuple[str, ...]:
    """Names of an enum in order of their values."""
    return ENUMS[enum][1]


def value(enum: str, name: str) -> int:
    """Value of a name.

    Raises:
      ValueError: no such name.
    """
    if name not in ENUMS[enum][1]:
        raise ValueError(
            f"`{_LABELS.get(enum, enum.lower())}` (={name!r}) must be one of {ENUMS[enum][1]}."
        )
    return ENUMS[enum][1].index(name)


def constant(enum: str, name: str) -> str:
    """C++ name of an enum's value."""
    prefix = ENUMS[enum][0]
    return "k" + prefix + "".join(part.capitalize() for part in name.split("_"))


def digest() -> int:
    """Hash of the format, 31 bits."""
    text = repr(
        (
            CELL,
            PANEL,
            MAX_SOURCES,
            REGION,
            MAX_LINKS,
            sorted(ENUMS.items()),
            sorted(RECORDS.items()),
        )
    )
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def header() -> str:
    """The text of csrc/runtime/schema.h."""
    lines = [
        "// Generated by native/schema.py, which names the format; run it, do not edit this.",
        "#pragma once",
        "#include <cstdint>",
        "",
        "namespace skc {",
        "",
        f"constexpr int32_t kFormat = {digest()};",
        f"constexpr int kCell = {CELL};",
        f"constexpr int kPanel = {PANEL};",
        f"constexpr int kMaxSources = {MAX_SOURCES};",
        f"constexpr int kRegion = {REGION};",
        f"constexpr int kMaxLinks = {MAX_LINKS};",
        "",
    ]
    for enum, (_, members) in ENUMS.items():
        lines.append(f"enum {enum} : int32_t {{")
        lines += [f"  {constant(enum, name)}," for name in members]
        lines += ["};", ""]
    for name, record in RECORDS.items():
        lines.append(f"struct {name} {{")
        for field, size, kind in fields(record):
            array = f"[{size}]" if size > 1 else ""
            lines.append(f"  {'float' if kind == 'f' else 'int32_t'} {field}{array};")
        lines += ["};", f"static_assert(sizeof({name}) == {4 * words(record)});", ""]
    return "\n".join([*lines, "}  // namespace skc", ""])


def header_path() -> pathlib.Path:
    """Where the header lies."""
    return pathlib.Path(__file__).parent / "csrc" / "runtime" / "schema.h"


def stale() -> str:
    """What to do if the header is not this format's; empty if it is."""
    path = header_path()
    if path.exists() and path.read_text() == header():
        return ""
    return f"{path.name} is not what schema.py says; run `python {__file__}`"


if __name__ == "__main__":
    # Only here: at installation, when the header is compared, there is no package.
    from skipconv_jax import whole_files

    whole_files.write_text(header_path(), header())
    print(header_path())
