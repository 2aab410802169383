"""Plans: a skipped network made ready for streaming on one engine. `compile_plan` picks it."""

from skipconv_jax.plans.base import Plan
from skipconv_jax.plans.compile import ENGINES, compile_plan, engine_name
from skipconv_jax.plans.plain import once

__all__ = ["ENGINES", "Plan", "compile_plan", "engine_name", "once"]
