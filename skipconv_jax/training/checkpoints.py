"""Checkpoints of a training phase: written in the background, visible only when whole (Orbax)."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import msgspec
import orbax.checkpoint as ocp

from skipconv_jax import json_files, whole_files
from skipconv_jax.training import processes
from skipconv_jax.training.step import TrainState

Tree = Any
T = TypeVar("T")
_SUMS = "sha256.json"  # in a checkpoint's folder: hash of each of its files
_DAMAGED = ".damaged"


class DamagedCheckpointError(ValueError):
    """A checkpoint whose files are not those that were written; says which steps are whole."""


class _Sums(msgspec.Struct, frozen=True):
    files: dict[str, str]


class Checkpoints:
    """The checkpoints of one phase, `<directory>/<step>/`: train state and data-iterator state.

    A checkpoint is written to a temporary folder and renamed when it is whole: a kill at any moment
    leaves the previous one as the latest. Hashes of its files are written beside them right after,
    so that what the disk or a copy has changed since is not trained on or evaluated.

    Args:
      directory: of the checkpoints.
      keep: how many to keep; None opens them for reading, which changes nothing in the folder,
        also while a training writes to it.
      newest_whole: where the newest is damaged, take the newest one that is whole; a training puts
        the damaged ones aside as `<step>.damaged`.
    """

    def __init__(
        self, directory: str | Path, keep: int | None = None, newest_whole: bool = False
    ) -> None:
        # Orbax takes absolute paths only.
        self.directory = Path(os.path.abspath(directory))
        self._newest_whole = newest_whole
        self._unsealed: set[int] = set()  # steps written by us whose hashes are not yet
        self._manager: ocp.CheckpointManager | None = None
        if keep is not None:
            if newest_whole:
                if processes.first():
                    self._put_aside()
                processes.together("damaged checkpoints are put aside")
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=True,
                cleanup_tmp_directories=True,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
            )
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_names=("state", "data")
            )

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, the newest last, damaged or not."""
        if not self.directory.is_dir():
            return []
        names = [entry.name for entry in os.scandir(self.directory) if entry.is_dir()]
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def whole(self) -> list[int]:
        """Steps whose checkpoints are what was written, the newest last."""
        return [step for step in self.steps() if not self.fault(step)]

    @property
    def latest(self) -> int | None:
        """Step of the checkpoint that is read, None where there is none: the newest one.

        With `newest_whole`, of those that are whole.
        """
        steps = self.whole() if self._newest_whole else self.steps()
        return steps[-1] if steps else None

    def fault(self, step: int) -> str:
        """What of a checkpoint is not as it was written; empty where nothing is.

        A checkpoint without hashes (its training was killed in the moment between) passes, if it
        has files at all.
        """
        folder = self.directory / str(step)
        if not (folder / _SUMS).is_file():
            return "" if (folder / "state").is_dir() else "it has no train state"
        try:
            written = json_files.read(folder / _SUMS, _Sums).files
            found = _hashes(folder)
        except (json_files.JsonError, OSError) as error:
            return str(error)
        for name in sorted(written.keys() | found.keys()):
            if written.get(name) != found.get(name):
                fault = "changed" if name in written and name in found else "missing"
                return f"{name} is {fault if name in written else 'new'} since it was written"
        return ""

    def save(self, step: int, state: TrainState, data_state: Tree) -> None:
        """Starts writing; returns when the values are copied, so that the step may donate them.

        Args:
          step: steps done.
          state: the train state.
          data_state: state of the data iterator, a JSON-serialisable tree.

        Raises:
          ValueError: the checkpoints were opened for reading.
        """
        if self._manager is None:
            raise ValueError("`keep` (=None) opens checkpoints for reading; pass a number to save.")
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()), data=ocp.args.JsonSave(data_state)
        )
        if self._manager.latest_step() != step:
            self._unsealed.add(step)
            self._manager.save(step, args=args)

    def restore(self, like: TrainState) -> tuple[TrainState, Tree]:
        """The newest checkpoint, in the shapes, dtypes and sharding of `like`.

        Raises:
          DamagedCheckpointError: its files are not those that were written.
          ValueError: there is none, or it holds a different network.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
        )

        def read(step: int) -> tuple[TrainState, Tree]:
            restored = self._read(step, args)
            return TrainState(**restored["state"]), restored["data"]

        return self._newest(read)[1]

    def weights(self) -> tuple[int, dict[str, Tree]]:
        """`(step, {'model': variables, 'gates': {...}})` of the newest checkpoint.

        Raises:
          DamagedCheckpointError: its files are not those that were written.
          ValueError: there is none.
        """
        args = ocp.args.Composite(state=ocp.args.StandardRestore())

        def read(step: int) -> dict[str, Tree]:
            state = self._read(step, args)["state"]
            weights = state["weights"]
            variables = {"params": weights["model"], **(state["stats"] or {})}
            return {"model": variables, "gates": weights["gates"] or {}}

        return self._newest(read)

    def _newest(self, read: Callable[[int], T]) -> tuple[int, T]:
        while True:
            before = self.steps()
            step = self.latest
            if step is None:
                raise ValueError(
                    f"`directory` (={self.directory}) holds no {'whole ' * bool(self.steps())}"
                    "checkpoint; train first."
                )
            try:
                fault = self.fault(step)
                if not fault:
                    return step, read(step)
            # Orbax raises whatever its parts raise: KeyError, NotImplementedError, TensorStore's...
            except Exception as error:
                # Orbax looks at every step: a training may have removed any of them meanwhile.
                if self._gone(step) or self.steps() != before:
                    continue
                raise ValueError(
                    f"`directory` (={self.directory}) must hold a checkpoint of this "
                    "configuration's network; use the config it was trained with. Step "
                    f"{step} can't be read: {_line(error)}"
                ) from error
            if not self._gone(step):
                raise DamagedCheckpointError(
                    f"`directory` (={self.directory}) must hold whole checkpoints; step {step} is "
                    f"damaged: {fault}. Whole are the steps {self.whole() or 'none'}; take the "
                    "newest of them with --newest_whole, or another --workdir."
                )

    def _gone(self, step: int) -> bool:
        """Whether a training has removed the checkpoint, for a newer one, while we read it."""
        return not (self.directory / str(step)).is_dir()

    def _read(self, step: int, args: Any) -> Any:
        if self._manager is not None:
            return self._manager.restore(step, args=args)
        # What reading only implies, said: Orbax warns where it has to infer it.
        options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
        with ocp.CheckpointManager(
            self.directory, options=options, item_names=("state", "data")
        ) as manager:
            return manager.restore(step, args=args)

    def _seal(self) -> None:
        """Writes the hashes of checkpoints that have become whole; one process, for all."""
        if not processes.first():
            return
        for step in sorted(self._unsealed):
            folder = self.directory / str(step)
            if folder.is_dir():
                text = json.dumps({"files": _hashes(folder)}, indent=1)
                whole_files.write_text(folder / _SUMS, text)
                self._unsealed.discard(step)

    def _put_aside(self) -> None:
        """Renames damaged checkpoints newer than the newest whole one: their steps come again."""
        whole = self.whole()
        for step in self.steps():
            if step not in whole:
                folder = self.directory / str(step)
                folder.rename(_free(folder.with_name(folder.name + _DAMAGED)))

    def wait(self) -> None:
        """Returns when everything is on disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._seal()

    def close(self) -> None:
        """Waits for writes and stops the writer's threads."""
        if self._manager is not None:
            self._manager.close()
            self._seal()


def _free(path: Path) -> Path:
    taken = 0
    while path.exists():
        taken += 1
        path = path.with_suffix(f"{_DAMAGED}{taken}")
    return path


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        # Sums that a kill left half-written begin with a point; nothing of Orbax's does.
        if path.is_file() and name != _SUMS and not name.startswith("."):
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _line(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {text}"
