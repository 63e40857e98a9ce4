"""The helpers stand beside the tests."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from service_process import ServiceProcess


@pytest.fixture
def make_replica(tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Makes replicas from the arguments of ``ServiceProcess``; those of one group share their folder and snapshots.

    None of them outlives the test.
    """
    made: list[ServiceProcess] = []

    def make(servers: str, *, group: str, prefix: str, **options: object) -> ServiceProcess:
        made.append(ServiceProcess(tmp_path / group, servers, group=group, prefix=prefix, **options))
        return made[-1]

    yield make
    for replica in made:
        replica.discard()
