"""Plans: a skipped network made ready for streaming on one engine. `compile_plan` picks it."""

from skipconv_jax.plans.native import Plan, compile_plan

__all__ = ["Plan", "compile_plan"]
