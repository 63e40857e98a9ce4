"""A service on an in-memory broker with the real configuration, watcher, reloader, mutator, shadow and tuner.

The predictor is a fake whose score is known in closed form: it forecasts a normal distribution around the last value,
with a standard deviation of twice ``cusum_k``. Ticks are random walks with normal steps.
"""

import asyncio
import math
import random
import types
from statistics import NormalDist

import numpy as np
from prometheus_client import CollectorRegistry
from replicas import MemoryStore, SharedDisk, make_epoch, new_broker, tick

from fake_predictor import FakePredictor
from mutation_worlds import World
from usp_daemon.config import Kafka
from usp_daemon.core import QUANTILE_LEVELS
from usp_daemon.live_tuning import LiveTuning
from usp_daemon.persistence import MemoryEpochLog
from usp_daemon.service import Daemon, DaemonOptions, EpochBook, RecoveryPolicy, Reloader, StopRequest
from usp_daemon.telemetry import ServiceMetrics
from usp_daemon.transport import MemoryTransport
from usp_daemon.tuning import ScoreDrift
from usp_daemon.wire import TickDecoder

KEY = "orchestration.cusum_k"
SCORES = np.array([NormalDist().inv_cdf(level) for level in QUANTILE_LEVELS])
START_NS = 1_700_000_000_000_000_000


def expected_score(cusum_k, step):
    """Continuous ranked probability score of N(0, 2 k) for a value from N(0, step)."""
    spread = 2.0 * cusum_k
    return math.sqrt(2.0 / math.pi) * math.hypot(spread, step) - spread / math.sqrt(math.pi)


class SpreadPredictor(FakePredictor):
    """Forecasts the last value, give or take twice ``cusum_k``."""

    async def step(self, keys, values, timestamps_ns, record_timestamps_ns, parameters=None):
        result = await super().step(keys, values, timestamps_ns, record_timestamps_ns)
        spread = 2.0 * parameters[KEY]
        result.columns["quantiles"] = result.columns["predicted_next"][:, None] + spread * SCORES
        return result

    async def export_states(self, topic, partition, parameters=None):
        own = {key[2]: state for key, state in self.seen.items() if key[:2] == (topic, partition)}
        return _states(tuple(own), np.array([own[s][0] for s in own]), np.array([own[s][1] for s in own]))

    async def import_states(self, topic, partition, states, parameters=None):
        for symbol, count, last in zip(states.symbols, states.arrays["count"], states.arrays["last"], strict=True):
            assert (topic, partition, symbol) not in self.seen
            self.seen[topic, partition, symbol] = (int(count), float(last))

    async def release(self, topic, partition):
        gone = [key for key in self.seen if key[:2] == (topic, partition)]
        for key in gone:
            del self.seen[key]
        return len(gone)

    async def limit_partitions(self, num_partitions):
        pass


def _states(symbols, counts, lasts):
    from replicas import _States

    return _States(symbols, {"count": counts, "last": lasts})


class Feed:
    """Random walks, as fast as they are answered."""

    def __init__(self, broker, num_symbols=20, num_partitions=1, seed=0):
        self.broker, self.rng = broker, random.Random(seed)
        self.step = 1.0
        self.values = {f"s{i}": 100.0 for i in range(num_symbols)}
        self.num_partitions = num_partitions
        self.number = 0

    def burst(self, rounds=5):
        for _ in range(rounds):
            for i, symbol in enumerate(self.values):
                self.values[symbol] += self.rng.gauss(0.0, self.step)
                stamp_ns = START_NS + self.number * 1_000_000
                self.number += 1
                record = tick(symbol, stamp_ns, repr(self.values[symbol]))
                self.broker.produce("ticks", i % self.num_partitions, symbol.encode(), record, stamp_ns // 1_000_000)


class Service:
    """One replica with a tuner; started again on the same disk after a stop."""

    def __init__(self, directory, campaign_fn, *, text="", num_partitions=1, seed=0, drift_ratio=1.1, num_symbols=20):
        self.drift_ratio = drift_ratio
        settings = (
            f'{text}\n[tuning]\nrecord_path = "{directory}/ticks"\nprobation_settle_s = 0.2\n'
            "probation_min_ticks = 100\nprobation_max_ticks = 4000\nschedule_hours = 0.0\nprobation_share = 0.1\n"
            "[security]\nmin_ticks_between_mutations = 0\n[io]\nconfig_poll_interval_s = 0.5\n"
        )
        self.world = World(directory, settings)
        self.kafka = Kafka(group="g")
        self.broker = new_broker(num_partitions, self.kafka)
        self.feed = Feed(self.broker, num_symbols, num_partitions=num_partitions, seed=seed)
        self.disk, self.log = SharedDisk(), MemoryEpochLog()
        self.campaign_fn = campaign_fn
        self.metrics = ServiceMetrics(CollectorRegistry())

    async def start(self, predictor=None, *, make_fn=make_epoch, key_fn=lambda *key: key):
        self.fed_before = self.feed.number
        loaded = self.world.source().load()
        self.stop_request, asked = StopRequest(), asyncio.Event()
        self.epochs = EpochBook(self.log, make_fn, instance="r")
        await self.epochs.open(loaded.settings.predictor_values(), loaded.settings.predictor_hash(), loaded.base_hash)
        self.predictor = predictor or SpreadPredictor()
        source = self.world.source()
        reloader = Reloader(
            source=source, started=loaded, epochs=self.epochs, check_fn=lambda settings: None,
            reported_fn=lambda report, now: None, asked=asked,
        )  # fmt: skip
        self.tuning = LiveTuning(
            loaded.settings, self.world.source(), epochs=self.epochs, predictor=self.predictor,
            key_fn=key_fn, metrics=self.metrics, reload_fn=asked.set, who="r", campaign_fn=self.campaign_fn,
            drift=ScoreDrift(ratio=self.drift_ratio, fast_ticks=400, slow_ticks=8_000, min_ticks=1_500),
            turn_s=0.02, round_s=0.02,
        )  # fmt: skip
        alive = types.SimpleNamespace(alive=True, crash_fn=lambda point: None)
        self.daemon = Daemon(
            transport=MemoryTransport(self.broker, self.kafka),
            predictor=self.predictor,
            store=MemoryStore(self.disk, alive, random.Random(1)),
            decoder=TickDecoder(),
            epochs=self.epochs,
            key_fn=key_fn,
            policy=RecoveryPolicy(),
            options=DaemonOptions(group="g", commit_interval_s=0.02, retry_backoff_s=0.05),
            companions={
                "reload": lambda: reloader.run(poll_interval_s=0.5),
                **self.tuning.companions,
            },
            tap=self.tuning.tap,
        )
        self.tuning.attach(self.daemon)
        self.task = asyncio.create_task(self.daemon.run(self.stop_request))

    async def stop(self):
        self.stop_request.stop()
        await self.task
        await self.epochs.close()

    async def run_until(self, condition, timeout_s=60.0, pause_s=0.002):
        """Feed, a burst every ``pause_s`` at the most, until ``condition()``; what is behind is answered first."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not condition():
            assert not self.task.done(), self.task.exception()
            assert loop.time() < deadline, (self.tuning.tuner.state, self.world.events())
            if self.feed.number - self.fed_before - self.tuning.recorder.num_ticks < 500:
                self.feed.burst()
            await asyncio.sleep(pause_s)

    def count(self, event):
        return self.world.events().count(event)
