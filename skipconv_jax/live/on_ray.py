"""Workers as actors of a Ray cluster: `skipconv batch --ray`, `skipconv serve --ray`."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from skipconv_jax.extras import required
from skipconv_jax.live.workers import CallFailed, WorkerDied, answered

with required():
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError


class _Actor:
    """The object, in a process that Ray starts somewhere."""

    def __init__(self, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._make, self._args, self._target = make, args, None

    def call(self, method: str, args: tuple[Any, ...]) -> tuple[bool, Any]:
        """See `Worker.call`; a failure to make the object is the caller's to hear, too."""
        if self._target is None:
            right, made = answered(self, "made", ())
            if not right:
                return False, made
        return answered(self._target, method, args)

    def made(self) -> None:
        """Makes the object."""
        self._target = self._make(*self._args)


class OnRay:
    """A worker that Ray places; it is never restarted by Ray, so that nothing runs twice.

    Args:
      make: makes the object, importable on every node.
      args: of `make`.
    """

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        options = {"num_cpus": 1, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        self._actor: Any = ray.remote(_Actor).options(**options).remote(make, args)

    def call(self, method: str, *args: Any, seconds: float | None = None) -> Any:
        """See `Worker`."""
        try:
            right, value = ray.get(self._actor.call.remote(method, args), timeout=seconds)
        except (RayActorError, GetTimeoutError) as error:
            # One that is only out of reach must not go on with what others take over.
            self.stop()
            reason = "no answer in time" if isinstance(error, GetTimeoutError) else "it is gone"
            raise WorkerDied(reason) from None
        if not right:
            raise CallFailed(value)
        return value

    def stop(self) -> None:
        """See `Worker`."""
        ray.kill(self._actor)


@contextlib.contextmanager
def cluster(address: str = "", cpus: int | None = None) -> Iterator[int]:
    """Connects to a cluster, or starts one on this machine; gives the number of its cores.

    Args:
      address: of the cluster's head, or 'auto'; '' starts one that ends with the block.
      cpus: of the one that is started.

    Raises:
      ConnectionError: nobody answers there.
    """
    own: dict[str, Any] = {} if address else {"num_cpus": cpus, "include_dashboard": False}
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        ray.shutdown()
