"""Skipped convolution as pure functions: geometry, gates, policies and implementations."""

from skipconv_jax.ops.gates import (
    AlwaysGate,
    ConvNormGate,
    Gate,
    GumbelGate,
    InputNormGate,
    OutputNormGate,
)
from skipconv_jax.ops.geometry import Conv
from skipconv_jax.ops.masked_conv import IMPLEMENTATIONS
from skipconv_jax.ops.policies import (
    POLICIES,
    POLICY_NAMES,
    Accumulate,
    ClosedLoop,
    Decision,
    Keyframe,
    Observation,
    Policy,
    Previous,
    policy_name,
)
from skipconv_jax.ops.skip_conv import init_state, skip_conv
from skipconv_jax.ops.state import SkipState

__all__ = [
    "IMPLEMENTATIONS",
    "POLICIES",
    "POLICY_NAMES",
    "Accumulate",
    "AlwaysGate",
    "ClosedLoop",
    "Conv",
    "ConvNormGate",
    "Decision",
    "Gate",
    "GumbelGate",
    "InputNormGate",
    "Keyframe",
    "Observation",
    "OutputNormGate",
    "Policy",
    "Previous",
    "SkipState",
    "init_state",
    "policy_name",
    "skip_conv",
]
