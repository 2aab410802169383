"""Training on clips: the dense network first, then gates and network jointly (section 3.2.2)."""

from skipconv_jax.extras import require

require("optax", "orbax")
