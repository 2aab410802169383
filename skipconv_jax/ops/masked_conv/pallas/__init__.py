"""Hand-written kernels: `tpu` for TPUs, `gpu` for Hopper GPUs."""
