"""Model compression: spatial and weight SVD with greedy ranks, L0 channel pruning.

A compressed network is an ordinary network, `wrap(fn)` on smaller variables: it trains, serves and
skips (`skip(wrap(fn))`) as the dense one does.
"""

from skipconv_jax.extras import required

with required():
    from skipconv_jax.compress.batch_norm import reestimate
    from skipconv_jax.compress.channels import Group, find_groups
    from skipconv_jax.compress.kernels import Kernel, find_kernels
    from skipconv_jax.compress.l0 import expected_share, gated, init_gates, l0_loss, mean_gates
    from skipconv_jax.compress.prune import Pruning, prune, pruning
    from skipconv_jax.compress.search import Candidate, Selection, score_candidates, select
    from skipconv_jax.compress.svd import Factor, Factorization, approximate, factorization, factors

__all__ = [
    "Candidate",
    "Factor",
    "Factorization",
    "Group",
    "Kernel",
    "Pruning",
    "Selection",
    "approximate",
    "expected_share",
    "factorization",
    "factors",
    "find_groups",
    "find_kernels",
    "gated",
    "init_gates",
    "l0_loss",
    "mean_gates",
    "prune",
    "pruning",
    "reestimate",
    "score_candidates",
    "select",
]
