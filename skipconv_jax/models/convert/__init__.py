"""Public PyTorch checkpoints to our variables and back.

    state = load_state("pose_hrnet_w32_256x256.pth")
    variables = from_torch(state, init_variables(model, key, x), replace=["final_layer.*"])
    save_state(to_torch(variables), "mine.safetensors")

Every network of this package names its modules as the public implementation does, so one mechanism
serves all.
"""

from skipconv_jax.models.convert.files import load_state, save_state
from skipconv_jax.models.convert.tree import from_torch, to_torch

__all__ = ["from_torch", "load_state", "save_state", "to_torch"]
