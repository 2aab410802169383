"""A traced network: one walk over its equations, its convolutions as sites, and its folded form."""
