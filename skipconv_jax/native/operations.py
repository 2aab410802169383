"""Which nodes of a folded graph the engine takes, and why it refuses the others.

`python -m skipconv_jax.native.operations` writes the page docs/operations.md.
"""

import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from skipconv_jax import whole_files
from skipconv_jax.native import lower_quantised, schema
from skipconv_jax.native.builder import MAX_TAPS
from skipconv_jax.native.specs import Activation
from skipconv_jax.program import fold as g

Avals = Mapping[int, jax.ShapeDtypeStruct]
Shape = tuple[int, int, int]
_OTHER_NAMES = {"logistic": "sigmoid"}


def activation(
    fn: str, params: Sequence[float] = (), slope: np.ndarray | None = None, channels: int = 0
) -> Activation:
    """A graph's activation as the engine has it; a slope is spread over the channels."""
    full = () if slope is None else np.broadcast_to(np.ravel(slope), (channels,)).tolist()
    return Activation(_OTHER_NAMES.get(fn, fn), tuple(params), tuple(full))


def position_shape(aval: jax.ShapeDtypeStruct) -> Shape | None:
    """(h, w, c) of a tensor `(B, h, w, c)` or `(B, c)`; None where the engine has none such."""
    if aval.dtype != np.float32 or 0 in aval.shape:
        return None
    if len(aval.shape) == 4:
        return aval.shape[1], aval.shape[2], aval.shape[3]
    return (1, 1, aval.shape[1]) if len(aval.shape) == 2 else None


def why_not(node: g.Node, avals: Avals) -> str:
    """Why a node can't run in the engine, one line; empty where it can."""
    if isinstance(node, g.OtherNode):
        return f"no rule for {node.eqn.primitive.name}"
    if lower_quantised.concerns(node, avals):
        return lower_quantised.why_not(node, avals)
    if type(node) not in TAKEN:
        return REFUSED[type(node)]
    refs = node.inputs if isinstance(node, g.FlattenNode) else (*node.inputs, node.output)
    for ref in refs:
        if position_shape(avals[ref]) is None:
            return (
                f"{avals[ref].dtype}{list(avals[ref].shape)} is no float32 (B, h, w, c) or (B, c)"
            )
    if len({avals[r].shape[0] for r in (*node.inputs, node.output)}) != 1:
        return "mixes streams"
    return _why_not(node, [s for r in refs if (s := position_shape(avals[r])) is not None])


def _why_not(node: g.Node, shapes: Sequence[Shape]) -> str:
    match node:
        case g.ConvNode():
            if node.conv.rank != 2:
                return f"a convolution over {node.conv.rank} axes"
            negative = any(p < 0 for pair in node.conv.padding for p in pair)
            return "negative padding" if negative else _unknown(node.act, "Act")
        case g.SumNode():
            return _unknown(node.act, "Act")
        case g.UnaryNode() if node.fn == "integer_pow":
            return "" if 1 <= node.power <= 8 else f"a power of {node.power}"
        case g.UnaryNode():
            return _unknown(node.fn, "Act")
        case g.BinaryNode():
            x, y, _ = shapes
            fits = (x[2] == y[2] or 1 in (x[2], y[2])) and (
                x[:2] == y[:2] or (1, 1) in (x[:2], y[:2])
            )
            return _unknown(node.fn, "BinaryKind") or ("" if fits else f"broadcasts {x} and {y}")
        case g.PoolNode():
            return _unknown(node.fn, "PoolKind")
        case g.ReduceNode():
            return _unknown(node.fn, "ReduceKind")
        case g.PadNode():
            return "negative padding" if min(min(p) for p in node.padding) < 0 else ""
        case g.CropNode():
            return "" if min(node.strides) > 0 else "a reversed axis"
        case g.ResizeNode():
            taps = max(index.shape[1] for index, _ in node.taps)
            return "" if taps <= MAX_TAPS else f"{taps} taps an axis, more than {MAX_TAPS}"
        case g.ReshapeNode():
            return "" if shapes[0] == shapes[-1] else f"reshapes {shapes[0]} to {shapes[-1]}"
    return ""


def _unknown(fn: str, enum: str) -> str:
    known = fn == "none" or _OTHER_NAMES.get(fn, fn) in schema.names(enum)
    return "" if known else f"no kernel for {fn}"


_ACTS = ", ".join(n for n in schema.names("Act") if n not in ("none", "square"))
# Node: what the engine does with it, and what it refuses.
TAKEN: dict[type[g.Node], tuple[str, str]] = {
    g.ConvNode: (
        "Any window, stride, dilation, groups and padding, with bias, a residual and an activation "
        "behind it; skipped by blocks. 3x3 of stride 1 by Winograd, depthwise and grouped by "
        "kernels of their own. A 1x1 reads its input times one value per channel. "
        "Transposed ones (a convolution per phase) and Winograd show NaN and infinities wherever "
        "the network does, and may show them one position further.",
        "other than 2 spatial axes; negative padding",
    ),
    g.SumNode: ("Sum of any number of maps, each weighted and nearest-upsampled, activation.", ""),
    g.AffineNode: ("Scale and shift, scalar or per channel.", ""),
    g.UnaryNode: (f"{_ACTS}; whole powers up to 8.", "other functions, other powers"),
    g.PReluNode: ("One slope per channel.", ""),
    g.BinaryNode: (
        f"{', '.join(n for n in schema.names('BinaryKind') if not n.startswith('r'))}; of one "
        "shape, or one of them one position, or one channel.",
        "other broadcasts",
    ),
    g.UpsampleNode: ("Nearest, by a whole factor.", ""),
    g.ResizeNode: (
        "Any separable linear resampling: nearest, bilinear, cubic, any size.",
        f"more than {MAX_TAPS} taps an axis",
    ),
    g.PoolNode: (
        "max, mean (of all or valid positions), sum; any window, stride, padding.",
        "",
    ),
    g.SpatialSumNode: ("Sum (with an affine map: mean) over all positions.", ""),
    g.SpatialMaxNode: ("Maximum over all positions.", ""),
    g.SoftmaxNode: ("Over the channels of each position.", ""),
    g.ReduceNode: (f"{', '.join(schema.names('ReduceKind'))} over channels.", ""),
    g.ConcatNode: ("Channels of any number of maps.", ""),
    g.ChannelsNode: ("Slice, split, shuffle, gather of channels of any number of maps.", ""),
    g.PadNode: ("Constant border of any value.", "negative padding"),
    g.CropNode: ("Slice of positions with strides.", "reversed axes"),
    g.DepthToSpaceNode: ("Both orders of channels (DCR, CRD).", ""),
    g.SpaceToDepthNode: ("Both orders of channels.", ""),
    g.ReshapeNode: ("That only adds or drops axes of one position.", "other reshapes"),
    g.QuantizeNode: ("float32 to int8 or uint8; of a frame, as it enters.", ""),
    g.DequantizeNode: ("And back; of a result, as it leaves.", ""),
    g.QConvNode: (
        "As a convolution, of int8 or uint8 by int8, exact; closed loop, norm gates.",
        "other policies and gates",
    ),
    g.QTableNode: ("Any function of one quantised number.", ""),
    g.QSumNode: ("Of up to 8 maps.", "more"),
    g.QMulNode: ("Of one shape, or one of them one position.", "other broadcasts"),
    g.QMeanNode: ("Any window, stride, padding.", ""),
    g.FlattenNode: ("Positions of maps one behind the other, where they leave the program.", ""),
}

REFUSED: dict[type[g.Node], str] = {
    g.LayoutNode: "an array laid out otherwise than (B, h, w, c)",
    g.CompareNode: "a comparison",
    g.SelectNode: "a selection",
}


def page() -> str:
    """The text of docs/operations.md."""
    lines = [
        "# What the native engine takes",
        "",
        "Written by `python -m skipconv_jax.native.operations`. A network is folded into the nodes "
        "below; those the engine",
        "takes run in one native call per uninterrupted stretch, whatever else stays in XLA. "
        "`plan.report()` names every",
        "operation left to XLA with its reason. All tensors are float32, `(B, h, w, c)` or "
        "`(B, c)`; of everything",
        "but a convolution, positions are computed anew where a source changed, in regions of "
        f"{schema.REGION} x {schema.REGION}.",
        "",
        "| node | what runs natively | refused |",
        "|---|---|---|",
    ]
    lines += [f"| {n.__name__} | {what} | {not_} |" for n, (what, not_) in TAKEN.items()]
    lines += [f"| {n.__name__} |  | {reason} |" for n, reason in REFUSED.items()]
    lines += [
        "",
        "Refused everywhere: other dtypes and ranks, operations that mix streams, and every "
        "operation that folding has no",
        "rule for (`no rule for NAME`). Policies: "
        + ", ".join(f"`{n}`" for n in schema.names("Policy"))
        + "; gates: Input-Norm, Output-Norm, Gumbel (signed and of",
        "magnitudes), always.",
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    path = pathlib.Path(__file__).parents[2] / "docs" / "operations.md"
    whole_files.write_text(path, page())
    print(path)
