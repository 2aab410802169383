"""Flags of the commands that run a trained network skipped: which weights, engine and policy."""

from absl import flags

from skipconv_jax.ops import POLICY_NAMES
from skipconv_jax.plans import ENGINES
from skipconv_jax.plans.base import PRECISIONS

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "phase folder, .pth or .safetensors file")
ENGINE = flags.DEFINE_enum(
    "engine", "auto", [*ENGINES, "xla"], "what runs the network (xla: plain); one line says why"
)
# The best of docs/results/policies.md without resets; the paper's Eq. 3 is `previous`.
POLICY = flags.DEFINE_enum(
    "policy",
    "closed_loop",
    POLICY_NAMES,
    "what residuals are taken against, unless a gate plan says; eval takes that of --config",
)
PRECISION = flags.DEFINE_enum(
    "precision",
    None,
    PRECISIONS,
    "int8 of a quantised network in stream and eval --video; default what it and the engine say",
)
