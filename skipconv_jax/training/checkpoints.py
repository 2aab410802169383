"""Checkpoints of a training phase: written in the background, visible only when whole (Orbax)."""

import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from skipconv_jax.training.step import TrainState

Tree = Any


class Checkpoints:
    """The checkpoints of one phase, `<directory>/<step>/`: train state and data-iterator state.

    A checkpoint is written to a temporary folder and renamed when it is whole: a kill at any moment
    leaves the previous one as the latest.
    """

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        # Orbax takes absolute paths only.
        self.directory = Path(os.path.abspath(directory))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_names=("state", "data")
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data_state: Tree) -> None:
        """Starts writing; returns when the values are copied, so that the step may donate them.

        Args:
          step: steps done.
          state: the train state.
          data_state: state of the data iterator, a JSON-serialisable tree.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()), data=ocp.args.JsonSave(data_state)
        )
        if self._manager.latest_step() != step:
            self._manager.save(step, args=args)

    def restore(self, like: TrainState) -> tuple[TrainState, Tree]:
        """The newest checkpoint, in the shapes, dtypes and sharding of `like`.

        Raises:
          ValueError: there is none, or it holds a different network.
        """
        step = self.latest
        if step is None:
            raise ValueError(f"`directory` (={self.directory}) holds no checkpoint; train first.")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=args)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"`directory` (={self.directory}) must hold a checkpoint of this configuration's "
                f"network; use the config it was trained with. ({str(error).splitlines()[0]})"
            ) from error
        return TrainState(**restored["state"]), restored["data"]

    def weights(self) -> tuple[int, dict[str, Tree]]:
        """`(step, {'model': variables, 'gates': {...}})` of the newest checkpoint."""
        step = self.latest
        if step is None:
            raise ValueError(f"`directory` (={self.directory}) holds no checkpoint; train first.")
        args = ocp.args.Composite(state=ocp.args.StandardRestore())
        state = self._manager.restore(step, args=args)["state"]
        weights = state["weights"]
        variables = {"params": weights["model"], **(state["stats"] or {})}
        return step, {"model": variables, "gates": weights["gates"] or {}}

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for writes and stops the writer's threads."""
        self._manager.close()
