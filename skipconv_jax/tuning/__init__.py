"""Thresholds that set themselves: a plan of gates for a trained network and a budget."""

from skipconv_jax.tuning.choose import Choice, choose, choose_for_macs
from skipconv_jax.tuning.gate_plan import LayerPlan, Plan
from skipconv_jax.tuning.search import Budget, Measured, Runner, calibrate
from skipconv_jax.tuning.sensitivity import Sensitivity, measure_sensitivity

__all__ = [
    "Budget",
    "Choice",
    "LayerPlan",
    "Measured",
    "Plan",
    "Runner",
    "Sensitivity",
    "calibrate",
    "choose",
    "choose_for_macs",
    "measure_sensitivity",
]
