"""The short form of ``make soak``, and that its judge tells growth from noise."""

import dataclasses

import pytest
import soak
from service_process import FULL

SECONDS = 60.0 if FULL else 20.0
OVERLOAD_SECONDS = 60.0 if FULL else 5.0
STEADY = soak.Sample(
    at_s=0.0, resident_bytes=5e8, files=40, threads=20, told_resident_bytes=5e8, told_files=40, answered=0, lag=0
)


@pytest.mark.kafka
@pytest.mark.slow
async def test_nothing_grows_and_overload_passes(make_broker, topic_name, make_replica):
    servers = make_broker(long_lived=True, settings=soak.BROKER_SETTINGS).bootstrap_servers
    replica = make_replica(servers, group=soak.GROUP, prefix=topic_name("soak"), USP_KAFKA__SESSION_TIMEOUT_MS=45_000)
    faults = await soak.run(
        servers, replica, seconds=SECONDS, overload_seconds=OVERLOAD_SECONDS, num_records=100_000 if FULL else 20_000
    )
    assert faults == []


@pytest.mark.parametrize(
    ("name", "step"),
    [("resident_bytes", 1e6), ("told_resident_bytes", 1e6), ("files", 0.1), ("told_files", 0.1), ("threads", 0.1)],
)
def test_growth_is_told_from_noise(name, step):
    noisy = [dataclasses.replace(STEADY, **{name: getattr(STEADY, name) + n % 3 * step}) for n in range(100)]
    growing = [dataclasses.replace(STEADY, **{name: getattr(STEADY, name) + n * step}) for n in range(100)]
    assert soak.growth(noisy) == []
    assert len(soak.growth(growing)) == 1


def test_an_overload_is_judged():
    fine = soak.Overload(resident_bytes=6e8, lag=50_000, recovered_s=12.0, rebalances=0)
    assert soak.faults_of(fine, 5e8, 5_000, 10.0) == []
    for change in ({"resident_bytes": 9e8}, {"lag": 10.0}, {"recovered_s": 100.0}):
        assert soak.faults_of(dataclasses.replace(fine, **change), 5e8, 5_000, 10.0)
