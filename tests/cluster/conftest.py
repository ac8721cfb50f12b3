"""One Ray session for the tests that run in this process; kill tests start their own in subprocesses."""

from collections.abc import Iterator
from typing import Any

import pytest
from job_helpers import Silent

from qualitygate.cluster import session


@pytest.fixture
def silent() -> Silent:
    return Silent()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """Two CPUs and two GPUs that Ray believes in."""
    session._quiet_environment()
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 << 20,
    )
    yield ray
    ray.shutdown()
