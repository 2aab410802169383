"""Thresholds that set themselves: a gate plan for a trained network and a budget."""

from typing import Any

from skipconv_jax.moved import attribute
from skipconv_jax.tuning.choose import Choice, choose, choose_for_macs
from skipconv_jax.tuning.gate_plan import GatePlan, LayerGate
from skipconv_jax.tuning.search import Budget, Measured, Runner, calibrate
from skipconv_jax.tuning.sensitivity import Sensitivity, measure_sensitivity

__all__ = [
    "Budget",
    "Choice",
    "GatePlan",
    "LayerGate",
    "Measured",
    "Runner",
    "Sensitivity",
    "calibrate",
    "choose",
    "choose_for_macs",
    "measure_sensitivity",
]


def __getattr__(name: str) -> Any:
    """Names of 0.1.0."""
    return attribute(__name__, name)
