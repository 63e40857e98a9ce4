"""Changes on probation in the daemon beside a real broker: the better one stays, the worse goes, killed or not.

What a campaign has decided is planted in ``tuner.json``, where it stands while the tuner waits to make the change, as a
daemon that ended at that moment leaves it. Everything after that is the service's own: change, reload, epoch, shadow,
verdict, rollback. Ticks are white noise and autoregressions, on which the settings at the start do badly.
"""

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time

import orjson
import pytest
from service_process import EPOCH_MS, NUM_PARTITIONS, create_topics, outputs, produce, wait_answered

from usp_daemon.config import load_settings

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.long]

TIMEOUT_S = 300.0
PER_SECOND = 600
NUM_SYMBOLS = 8
CONFIG = """\
# where the tuner begins: far from good
[orchestration]
calibration_rate = 0.3  # jumps about
anchor_threshold = 6.0
scale_memory_ticks = 20.0

[tuning]
schedule_hours = 0.0
drift_ratio = 50.0
probation_settle_s = 0.5
probation_min_ticks = 1200
probation_max_ticks = 4000

[security]
min_ticks_between_mutations = 0
"""
BEFORE = {
    "orchestration.calibration_rate": 0.3,
    "orchestration.anchor_threshold": 6.0,
    "orchestration.scale_memory_ticks": 20.0,
}
# Within half of the present value, as much as one change may do.
BETTER = {
    "orchestration.calibration_rate": 0.16,
    "orchestration.anchor_threshold": 3.1,
    "orchestration.scale_memory_ticks": 29.0,
}
WORSE = {
    "orchestration.calibration_rate": 0.44,
    "orchestration.anchor_threshold": 8.9,
    "orchestration.scale_memory_ticks": 10.5,
}


class Tuned:
    """A replica with a tuner, its feed, and what it leaves on the disk."""

    def __init__(self, replica, servers, topic):
        self.replica, self.servers, self.topic = replica, servers, topic
        self.file = replica.directory / "config" / "config.toml"
        self.file.parent.mkdir(parents=True)
        self.file.write_text(CONFIG)
        self.hash_before = load_settings(self.file, environ={}).predictor_hash()
        self.num_sent = 0
        self.ticks = self._ticks()
        self.ended = asyncio.Event()
        self.feeding = None

    def _ticks(self):
        rng, level = random.Random(4), dict.fromkeys(range(NUM_SYMBOLS), 0.0)
        number = 0
        while True:
            for symbol in range(NUM_SYMBOLS):
                level[symbol] = 0.6 * (symbol % 2) * level[symbol] + rng.gauss(0.0, 1.0)
                stamp_ms = EPOCH_MS + 5 * number
                number += 1
                name = f"s{symbol}"
                value = orjson.dumps({"symbol": name, "ts": stamp_ms * 1_000_000, "value": 100.0 + level[symbol]})
                yield symbol % NUM_PARTITIONS, name.encode(), value, stamp_ms

    async def send(self, count, *, per_second=None):
        records = [next(self.ticks) for _ in range(count)]
        await produce(self.servers, self.topic, records, per_second=per_second)
        self.num_sent += count

    async def feed(self):
        while not self.ended.is_set():
            await self.send(PER_SECOND, per_second=PER_SECOND)

    async def until(self, condition, what):
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self.replica.alive, f"{what}: it has ended\n{self.replica.tail()}"
            assert time.monotonic() < deadline, f"{what}: {self.events()} {self.state()}\n{self.replica.tail()}"
            assert self.feeding is None or not self.feeding.done(), self.feeding
            await asyncio.sleep(0.1)

    async def start(self):
        self.replica.start()
        assert await self.replica.wait_ready(holding=NUM_PARTITIONS), self.replica.tail()

    async def begin(self):
        """Some history, then a decision waits in the state of a daemon that has ended, then it goes on."""
        await self.start()
        await self.send(NUM_SYMBOLS * 300)
        await wait_answered(self.servers, self.replica)
        assert await self.replica.stop() == 0, self.replica.tail()

    def plant(self, changes):
        """As ``_state.TunerState`` writes it once a campaign has found something."""
        now_ns = time.time_ns()
        campaign = {
            "name": "live-planted-1", "trigger": "operator", "seed": 1, "started_ns": now_ns,
            "config_hash": self.hash_before,
        }  # fmt: skip
        decision = {"apply": changes, "reason": "planted", "num_trials": 0, "evidence": {"planted": True}}
        state = {
            "format": 1, "phase": "decided", "since_ns": now_ns, "last_campaign_ns": now_ns, "num_campaigns": 1,
            "campaign": campaign, "decision": decision,
        }  # fmt: skip
        path = self.replica.directory / "io" / "state" / "tuner.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(state))

    def state(self):
        path = self.replica.directory / "io" / "state" / "tuner.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def pairs(self):
        """Pairs of scores that the probation has written down."""
        test = (self.state().get("probation") or {}).get("test")
        return 0 if test is None else test["num_pairs"]

    def lines(self):
        path = self.replica.directory / "io" / "mutations.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def events(self):
        return [line["event"] for line in self.lines()]

    def audit(self, *arguments):
        """What ``usp-daemon audit`` prints, as the operator of this replica asks."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("USP_")}
        return subprocess.run(
            [sys.executable, "-m", "usp_daemon.cli", "audit", *arguments],
            cwd=self.replica.directory, env=environment | self.replica.environment, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip

    def in_file(self):
        return {path: load_settings(self.file, environ={})[path] for path in BEFORE}

    async def is_answered_under(self, config_hash):
        """Until the epoch with this hash is in force."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            answer = await asyncio.to_thread(self.replica.http, "/metrics")
            if answer is not None and f'predictor_hash="{config_hash}"' in answer[1].decode():
                return
            assert time.monotonic() < deadline, self.replica.tail()
            await asyncio.sleep(0.1)

    async def end(self):
        """Stop feeding and the service; the hashes that answered, in order, each tick being answered once."""
        self.ended.set()
        await self.feeding
        await wait_answered(self.servers, self.replica)
        assert await self.replica.stop() == 0, self.replica.tail()
        found = (await outputs(self.servers, self.replica))["PREDICTIONS"]
        assert sum(map(len, found.values())) == self.num_sent
        orders = set()
        for records in found.values():
            offsets = [int(dict(headers)["usp-source"].rpartition(b"/")[2]) for _, _, _, headers in records]
            assert offsets == list(range(len(records)))
            hashes = [json.loads(value)["config_hash"] for _, value, _, _ in records]
            orders.add(tuple(one for i, one in enumerate(hashes) if i == 0 or one != hashes[i - 1]))
        assert not self.replica.events("tuner_failed"), self.replica.tail()
        return orders


@pytest.fixture
async def tuned(kafka_bootstrap_servers, topic_name, make_replica):
    servers, prefix = kafka_bootstrap_servers, topic_name("probation")
    await create_topics(servers, prefix, ("tuned",))
    replica = make_replica(servers, group="tuned", prefix=prefix, USP_TUNING__MODE="autonomous")
    made = Tuned(replica, servers, f"{prefix}.ticks")
    yield made
    if made.feeding is not None:
        made.feeding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await made.feeding


async def test_a_better_proposal_is_kept_over_a_kill_with_the_evidence_it_had(tuned):
    await tuned.begin()
    tuned.plant(BETTER)
    tuned.feeding = asyncio.create_task(tuned.feed())
    await tuned.start()
    await tuned.until(lambda: tuned.pairs() > 0, "evidence on the disk")
    assert tuned.events() == ["MUTATION_APPLIED", "PROBATION_STARTED"]
    assert tuned.in_file() == pytest.approx(BETTER)
    tuned.replica.kill()
    state, pairs = tuned.state(), tuned.pairs()
    assert state["phase"] == "probation" and not state["probation"]["verdict"]
    await tuned.start()
    began = tuned.replica.events("tuner_started")[-1]
    assert began["phase"] == "probation"
    await tuned.until(lambda: tuned.state().get("phase") == "idle", "the verdict")
    after = load_settings(tuned.file, environ={}).predictor_hash()
    await tuned.is_answered_under(after)
    orders = await tuned.end()

    assert tuned.events() == ["MUTATION_APPLIED", "PROBATION_STARTED", "MUTATION_KEPT"]
    assert tuned.in_file() == pytest.approx(BETTER)
    assert "# jumps about" in tuned.file.read_text()
    assert orders == {(tuned.hash_before, after)}
    applied, _, kept = tuned.lines()
    assert applied["evidence"] == {"planted": True} and kept["mutation"] == applied["mutation"]
    report = kept["evidence"]["probation"]
    # It went on where it stood: the test has more pairs than this process has scored.
    assert report["num_scored"] < report["test"]["num_pairs"] and report["test"]["num_pairs"] > pairs
    assert report["test"]["ticks"] >= 1200
    assert report["new"]["mean_score"] < report["old"]["mean_score"], report
    assert report["test"]["mean_difference"] < 0.0 and kept["evidence"]["verdict"] in ("better", "not_worse")
    verified, shown = tuned.audit("verify"), tuned.audit("show")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert shown.returncode == 0 and all(event in shown.stdout for event in tuned.events()), shown.stdout
    assert applied["mutation"] in shown.stdout or applied["mutation"][:8] in shown.stdout, shown.stdout
    print(f"\nkept: {kept['evidence']['verdict']}, {report['test']}")


async def test_a_worse_proposal_is_rolled_back_also_where_it_was_killed_before_any_evidence(tuned):
    first = tuned.file.read_bytes()
    await tuned.begin()
    tuned.plant(WORSE)
    tuned.feeding = asyncio.create_task(tuned.feed())
    await tuned.start()
    await tuned.until(lambda: "PROBATION_STARTED" in tuned.events(), "the probation")
    tuned.replica.kill()
    assert tuned.state()["phase"] in ("applied", "probation") and tuned.pairs() == 0
    assert tuned.in_file() == pytest.approx(WORSE)
    await tuned.start()
    await tuned.until(lambda: tuned.state().get("phase") == "idle", "the verdict")
    await tuned.is_answered_under(tuned.hash_before)
    answered = await tuned.replica.metric("usp_predictions_published_total")
    while await tuned.replica.metric("usp_predictions_published_total") < answered + PER_SECOND:
        await asyncio.sleep(0.1)
    orders = await tuned.end()

    # Killed between the line and the state, the line comes twice.
    events = [event for i, event in enumerate(tuned.events()) if i == 0 or event != tuned.events()[i - 1]]
    assert events == ["MUTATION_APPLIED", "PROBATION_STARTED", "MUTATION_ROLLED_BACK"]
    assert tuned.file.read_bytes() == first
    (order,) = orders
    assert len(order) == 3 and order[0] == order[2] == tuned.hash_before != order[1]
    rolled_back = tuned.lines()[-1]
    assert rolled_back["trigger"] == "tuner probation" and rolled_back["delta"].keys() == WORSE.keys()
    report = rolled_back["evidence"]["probation"]
    assert report["new"]["mean_score"] > report["old"]["mean_score"], report
    assert rolled_back["evidence"]["verdict"] in ("worse", "worse_at_limit")
    verified, shown = tuned.audit("verify"), tuned.audit("show")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert shown.returncode == 0 and all(event in shown.stdout for event in events), shown.stdout
    print(f"\nrolled back: {rolled_back['evidence']['verdict']}, {report['test']}")
