"""Ray sessions: a cluster when there is one, this machine otherwise."""

import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qualitygate.errors import ConfigurationError

logger = logging.getLogger(__name__)

# Rows, not pixels, cross the object store: half a gigabyte is plenty, and bounds what a laptop gives away.
OBJECT_STORE_BYTES = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a session may use; memory in bytes. A `local` one lives on this machine alone and ends with this process.

    nodes: machines that have CPUs to give.
    """

    cpus: float
    gpus: float
    local: bool
    memory: float = math.inf
    nodes: int = 1

    def share(self, workers: int) -> float:
        """CPUs for each of so many workers, so that one whole CPU stays free for Ray's own tasks.

        Without it a Ray Data pipeline waits silently for ever. On one machine that is a matter of shares; on several,
        what shares leave over would be crumbs on each, so the workers take whole CPUs there.
        """
        if self.nodes > 1:
            return 1.0
        return min(1.0, math.floor((self.cpus - 1) / workers * 1000) / 1000)

    @property
    def workers(self) -> int:
        """As many as there may be at one CPU each."""
        return max(1, int(self.cpus) - (self.nodes > 1))


@contextmanager
def connect(address: str = "auto") -> Iterator[Cluster]:
    """A Ray session for the time of the block.

    address: `auto` (the cluster that RAY_ADDRESS names, as in `ray job submit`, else this machine), `local`,
    or a cluster's address. A session that the caller has already started is used and left running.
    """
    _quiet_environment()
    import ray

    if ray.is_initialized():
        yield _describe(local=False)
        return
    local = address == "local" or (address == "auto" and not os.environ.get("RAY_ADDRESS"))
    if not local:
        _check_reachable(address if address != "auto" else os.environ["RAY_ADDRESS"])
    try:
        with _without_native_stderr(), _own_signals():
            if local:
                ray.init(
                    address="local",
                    # Below two, Ray's own tasks would wait for a CPU for ever.
                    num_cpus=max(2, len(os.sched_getaffinity(0))),
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            else:
                ray.init(address=address, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigurationError(
            f"no Ray session at --ray-address {address!r} ({reason}); use 'local' for this machine"
        ) from error
    try:
        yield _describe(local=local)
    finally:
        ray.shutdown()


def beside_driver() -> Any:
    """Where an actor belongs that a run can't lose: on the driver's node, whose loss ends the run anyhow."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _quiet_environment() -> None:
    """Must be set before Ray is imported."""
    # Binds every port of a local session to loopback (seen with ss; the documented node address does not).
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's C++ side reports on stderr what we handle (workers that die) and tell in our own words.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _check_reachable(address: str) -> None:
    """Ray itself would wait for minutes, in silence, for an address where nothing listens."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigurationError(
            f"no Ray cluster answers at {address!r} ({error.strerror or error}); start it, unset RAY_ADDRESS, "
            "or use --ray-address local for this machine"
        ) from error


@contextmanager
def _without_native_stderr() -> Iterator[None]:
    """Ray's C++ side greets on stderr while it starts; what goes wrong there is raised as an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray's start takes SIGTERM over, to end the process at once; ours commits first, so it is put back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler if handler is not None else signal.SIG_DFL)


def _describe(*, local: bool) -> Cluster:
    import ray

    resources = ray.cluster_resources()
    return Cluster(
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        local=local,
        memory=resources.get("memory", math.inf),
        nodes=sum(one["Alive"] and one["Resources"].get("CPU", 0) > 0 for one in ray.nodes()),
    )
