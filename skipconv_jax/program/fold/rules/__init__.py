"""What each primitive becomes: a file per family, `(reader, equation, operands) -> view`."""

from skipconv_jax.program.fold.reader import Rule
from skipconv_jax.program.fold.rules import (
    convolutions,
    joins,
    movement,
    pointwise,
    products,
    reductions,
)

RULES: dict[str, Rule] = {
    **convolutions.RULES,
    **pointwise.RULES,
    **movement.RULES,
    **products.RULES,
    **reductions.RULES,
    **joins.RULES,
}
