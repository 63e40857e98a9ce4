"""Random edits of the configuration file under load: taken as a whole or not at all, and no tick is lost.

File, watcher, validation, reloader, epochs and daemon are the product's; broker and predictor are in memory. What a
file says is known here without the product: each edit is made from values, those it leaves out are in
config/config.toml, and whatever makes it invalid was put there on purpose.
"""

import asyncio
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import tomllib
import types
import zlib

import pytest
from replicas import ChainPredictor, MemoryStore, SharedDisk, make_epoch, new_broker, tick

from usp_daemon.compute import predictor_config
from usp_daemon.config import ConfigSource, ConfigWatcher, Kafka, ReloadOutcome, ReloadTrigger
from usp_daemon.config import _watch as watching
from usp_daemon.persistence import MemoryEpochLog
from usp_daemon.service import Daemon, DaemonOptions, EpochBook, RecoveryPolicy, Reloader, StopRequest, _reload
from usp_daemon.transport import MemoryTransport
from usp_daemon.wire import TickDecoder, TopicPartition

TIMEOUT_S = 30.0  # it takes a tenth of a second
NUM_PARTITIONS = 2
DEFAULTS = {
    f"{section}.{name}": value
    for section, keys in tomllib.loads(
        (pathlib.Path(__file__).parents[2] / "config" / "config.toml").read_text()
    ).items()
    for name, value in keys.items()
}
# Keys and values that go with any others of these.
TRACED = {
    "core.staleness_ttl_ns": lambda rng: rng.randrange(10**6, 10**12),
    "orchestration.learning_rate": lambda rng: rng.uniform(1e-4, 1.0),
    "orchestration.sinkhorn_alpha": lambda rng: rng.uniform(0.01, 1.0),
    "orchestration.sinkhorn_max_iter": lambda rng: rng.randrange(10, 501),
    "orchestration.volatility_alpha": lambda rng: rng.choice((1, rng.uniform(0.001, 1.0))),  # also without a point
    "orchestration.confidence_power": lambda rng: rng.uniform(0.0, 64.0),
    "orchestration.anchor_memory_ticks": lambda rng: rng.uniform(10.0, 1e5),
    "orchestration.jko_domain_length": lambda rng: rng.uniform(0.01, 100.0),
    "orchestration.jump_exponent_threshold": lambda rng: rng.uniform(-1.0, 1.0),
    "orchestration.cusum_h": lambda rng: rng.choice(("auto", rng.uniform(2.0, 40.0))),
    "orchestration.cusum_k": lambda rng: rng.uniform(0.05, 2.0),
    "orchestration.grace_period_steps": lambda rng: rng.randrange(1001),
    "kernels.kernel_ridge_lambda": lambda rng: 10.0 ** rng.uniform(-10.0, -1.0),
    "kernels.sde_dt": lambda rng: rng.uniform(1e-4, 1.0),
    "kernels.stiffness_low": lambda rng: rng.uniform(1.0, 999.0),
    "kernels.besov_cone_c": lambda rng: rng.uniform(0.5, 5.0),
    "validation.validation_simplex_atol": lambda rng: 10.0 ** rng.uniform(-12.0, -2.0),
    "io.frozen_signal_min_steps": lambda rng: rng.randrange(5, 10_001),
}
STRUCTURAL = {
    "orchestration.fusion_method": lambda rng: rng.choice(("jko", "jko_proximal")),
    "kernels.refresh_interval": lambda rng: rng.randrange(1, 10_001),
    "kernels.kernel_a_lags": lambda rng: rng.randrange(1, 65),
    "kernels.dgm_width_size": lambda rng: rng.choice((32, 64, 128, 256)),
    "kernels.log_sig_depth": lambda rng: rng.randrange(1, 6),
    "kernels.wtmm_buffer_size": lambda rng: rng.choice((64, 128, 256, 512)),
}
ALL = TRACED | STRUCTURAL
# One of these makes any file invalid, as TOML text for the values of some keys, or for lines at the file's end.
POISON = {
    "wrong type": [
        {"orchestration.cusum_k": '"0.5"'}, {"orchestration.grace_period_steps": "1.5"}, {"kernels.sde_dt": "[0.1]"},
        {"kernels.besov_cone_c": "true"}, {"orchestration.fusion_method": "3"}, {"kernels.sde_dt": "{a = 1}"},
    ],
    "out of range": [
        {"orchestration.cusum_k": "17"}, {"kernels.sde_dt": "-0.1"}, {"orchestration.volatility_alpha": "nan"},
        {"kernels.besov_cone_c": "inf"}, {"orchestration.sinkhorn_alpha": "0.0"}, {"kernels.dgm_width_size": "48"},
        {"orchestration.fusion_method": '"none"'}, {"kernels.log_sig_depth": "6"},
        {"core.staleness_ttl_ns": "9223372036854775807"},
    ],
    "no sense together": [
        {"kernels.stiffness_low": "2000.0"}, {"orchestration.jko_window_min": "600"},
        {"orchestration.holder_threshold": "0.99"}, {"orchestration.sinkhorn_epsilon_min": "0.9"},
    ],
    "unknown": [
        {"orchestration.cusum_q": "1"}, {"cusum_k.cusum_k": "0.5"}, {"nothing.at_all": '"x"'},
        {"kernels.Sde_dt": "0.1"},
    ],
    "locked": [
        {"kafka.group": '"another"'}, {"http.port": "9999"}, {"io.snapshot_interval_s": "77.0"},
        {"tuning.mode": '"off"'},
    ],
}  # fmt: skip


def text_of(texts, rng):
    """A file with these TOML texts by path, in any order and with remarks."""
    sections = collections.defaultdict(list)
    for path in rng.sample(sorted(texts), len(texts)):
        section, _, name = path.rpartition(".")
        sections[section].append(f"{name} = {texts[path]}" + rng.choice(("", "", "  # so it is", "\n\n# more")))
    blocks = ["\n".join((f"[{section}]", *lines)) for section, lines in sections.items()]
    return "\n".join(rng.sample(blocks, len(blocks))) + "\n"


def toml(values):
    return {path: json.dumps(value) for path, value in values.items()}


class Editor:
    """Draws edits; ``values`` are those of the file that was right last, without the defaults."""

    def __init__(self, file, fixed, seed):
        self.file, self.fixed, self.rng = file, fixed, random.Random(seed)
        self.values = {}
        self.kinds = collections.Counter()

    def drawn(self, keys):
        return {path: ALL[path](self.rng) for path in keys}

    def next(self):
        """Edits the file; returns the kind and the values by path that it has now, None where it must be refused."""
        rng = self.rng
        kind, expected, content = self._content()
        self.kinds[kind] += 1
        if content is None:
            self._remove()
            if rng.random() < 0.3:
                self.file.mkdir()  # a directory of that name
        else:
            self._write(content, in_place=rng.random() < 0.4)
        if expected is not None:
            self.values = expected
        return kind, expected

    def _content(self):
        rng = self.rng
        changed = self.values | self.drawn(rng.sample(sorted(ALL), rng.randint(1, 5)))
        whole = self._text(toml(changed))
        pick = rng.random()
        if pick < 0.16:
            return "a few keys", changed, whole
        if pick < 0.24:
            values = self.drawn(ALL)
            return "all keys at once", values, self._text(toml(values))
        if pick < 0.32:
            values = self.values | self.drawn(STRUCTURAL)
            return "structural keys", values, self._text(toml(values))
        if pick < 0.40:
            values = {path: value for path, value in self.values.items() if rng.random() < 0.5}
            return "keys left out", values, self._text(toml(values))
        if pick < 0.44:
            return "nothing but the places", {}, self._text({})
        if pick < 0.48:
            return "the same values again", self.values, self._text(toml(self.values))
        if pick < 0.52:  # a file that is cut off between two lines, and right as far as it goes
            lines = [f"{path} = {text}" for path, text in toml(changed).items()]
            kept = rng.randrange(len(lines) + 1)
            text = "\n".join([*self._places(), *lines[:kept]]) + "\n"
            return "cut between lines", dict(list(changed.items())[:kept]), text.encode()
        if pick < 0.56:
            return "removed", None, None
        if pick < 0.60:
            return "binary", None, rng.choice((rng.randbytes(rng.randint(1, 300)) + b"\xff", whole + b"\x00", b"\x00"))
        if pick < 0.66:  # before the name of a section or a value, so that no TOML is left
            at = rng.choice([place for place, byte in enumerate(whole) if byte in b"[="])
            return "cut within a line", None, whole[: at + 1]
        if pick < 0.70:
            return "twice the same key", None, whole + b"[orchestration]\nlearning_rate = 0.1\n" * 2
        poison = rng.sample(sorted(POISON), rng.choice((1, 1, 2)))
        texts = toml(changed)
        for each in poison:
            texts |= rng.choice(POISON[each])
        return poison[0] if len(poison) == 1 else "wrong twice", None, self._text(texts)

    def _places(self):
        return [f"{path} = {text}" for path, text in self.fixed.items()]

    def _text(self, texts):
        return text_of(texts | self.fixed, self.rng).encode()

    def _remove(self):
        if self.file.is_dir() and not self.file.is_symlink():
            self.file.rmdir()
        self.file.unlink(missing_ok=True)

    def _write(self, content, *, in_place):
        if self.file.is_dir():
            self.file.rmdir()
        if in_place:
            self.file.write_bytes(content)
            return
        other = self.file.with_name(f".{self.file.name}.new")
        other.write_bytes(content)
        os.replace(other, self.file)


class Watcher(ConfigWatcher):
    """The product's, less patient, which tells which content the reloader has dealt with."""

    def __init__(self, source, **options):
        super().__init__(source, settle_s=0.01, patience_s=0.05, **options)
        type(self).latest = self
        self.judged, self.in_hand, self.dealt_with = collections.deque(), None, None

    def _look(self):
        event = super()._look()
        if event is not None:
            self.judged.append(self._known)
        return event

    async def __anext__(self):
        self.dealt_with = self.in_hand
        event = await super().__anext__()
        self.in_hand = self.judged.popleft()
        return event


def folded(parameters):
    """What the chain takes for its parameters: a number in which every value counts."""
    values = {path: float(value) if isinstance(value, int) else value for path, value in parameters.items()}
    number = zlib.crc32(json.dumps(values, sort_keys=True).encode()) % 99_991
    return {"orchestration.cusum_k": number / 1e4, "kernels.log_sig_depth": parameters["kernels.log_sig_depth"]}


class AllCount(ChainPredictor):
    """Every answer depends on every value that any tick of the symbol was stepped under."""

    async def step(self, keys, values, timestamps_ns, record_timestamps_ns, parameters=None):
        return await super().step(keys, values, timestamps_ns, record_timestamps_ns, folded(parameters))

    async def export_states(self, topic, partition, parameters=None):
        return await super().export_states(topic, partition, None if parameters is None else folded(parameters))

    async def import_states(self, topic, partition, states, parameters=None):
        await super().import_states(topic, partition, states, None if parameters is None else folded(parameters))


class World:
    """One daemon that follows one file."""

    def __init__(self, directory):
        self.file = directory / "etc" / "config.toml"
        self.file.parent.mkdir()
        self.fixed = {"io.state_path": json.dumps(str(directory / "state"))}
        self.file.write_text(text_of(self.fixed, random.Random(0)))
        self.kafka = Kafka(group="g")
        self.broker = new_broker(NUM_PARTITIONS, self.kafka)
        self.source = ConfigSource(self.file, {})
        self.log = MemoryEpochLog(keep=10_000)
        self.reports, self.asked, self.num_fed = [], asyncio.Event(), 0
        self.stop_request = StopRequest()

    async def start(self):
        loaded = self.source.load()
        self.epochs = EpochBook(self.log, make_epoch, instance="r")
        settings = loaded.settings
        await self.epochs.open(settings.predictor_values(), settings.predictor_hash(), loaded.base_hash)
        reloader = Reloader(
            source=self.source, started=loaded, epochs=self.epochs, check_fn=predictor_config,
            reported_fn=lambda report, now: self.reports.append(report), asked=self.asked,
        )  # fmt: skip
        alive = types.SimpleNamespace(alive=True, crash_fn=lambda point: None)
        self.daemon = Daemon(
            transport=MemoryTransport(self.broker, self.kafka),
            predictor=AllCount(),
            store=MemoryStore(SharedDisk(), alive, random.Random(1)),
            decoder=TickDecoder(),
            epochs=self.epochs,
            key_fn=lambda *key: key,
            policy=RecoveryPolicy(),
            options=DaemonOptions(group="g", commit_interval_s=0.02, retry_backoff_s=0.05),
            companions={"reload": lambda: reloader.run(poll_interval_s=0.2)},
        )
        self.task = asyncio.create_task(self.daemon.run(self.stop_request))

    async def feed(self):
        rng = random.Random(7)
        while True:
            for partition in range(NUM_PARTITIONS):
                self.num_fed += 1
                stamp_ns = 1_700_000_000_000_000_000 + self.num_fed * 1_000_000
                symbol = f"s{partition}.{rng.randrange(4)}"
                record = tick(symbol, stamp_ns, rng.randrange(1000))
                self.broker.produce("ticks", partition, symbol.encode(), record, stamp_ns // 1_000_000)
            await asyncio.sleep(0.01)

    async def until(self, condition, what):
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                assert not self.task.done(), (what, self.task.exception())
                await asyncio.sleep(0.005)

    async def follows(self, what, *, ask):
        """Until what the file holds now was dealt with; the reports on the way."""
        first = len(self.reports)
        if ask:
            self.asked.set()
            signalled = lambda: any(r.trigger is ReloadTrigger.SIGNAL for r in self.reports[first:])  # noqa: E731
            await self.until(signalled, what)
        await self.until(lambda: Watcher.latest.dealt_with == watching._read_all(self.source), what)
        return self.reports[first:]

    async def stop(self):
        await self.until(self.all_answered, "the end")
        self.stop_request.stop()
        await self.task
        await self.epochs.close()

    def all_answered(self):
        return sum(len(self.answers(partition)) for partition in range(NUM_PARTITIONS)) == self.num_fed

    def answers(self, partition):
        return self.broker.read_committed(self.kafka.predictions_topic, partition)


def epoch_values(values, keys):
    """All values that an epoch must have, by the file's."""
    return {path: values.get(path, DEFAULTS[path]) for path in keys}


async def edits(directory, monkeypatch, num_edits, seed):
    monkeypatch.setattr(_reload, "ConfigWatcher", Watcher)
    monkeypatch.setattr(watching, "_STEP_MS", 5)
    world = World(directory)
    await world.start()
    await world.until(lambda: hasattr(Watcher, "latest"), "the start")
    editor = Editor(world.file, world.fixed, seed)
    keys = set(world.epochs.current.settings)
    assert set(ALL) <= keys
    in_force = epoch_values({}, keys)
    assert world.epochs.current.settings == in_force
    planned = [in_force]  # what each epoch must be, in order
    num_accepted = num_refused = 0
    feeding = asyncio.create_task(world.feed())
    try:
        for number in range(num_edits):
            kind, expected = editor.next()
            what = f"edit {number} of seed {seed}: {kind}"
            reports = await world.follows(what, ask=editor.rng.random() < 0.3)
            outcomes = {report.outcome for report in reports}
            if expected is None:
                assert outcomes <= {ReloadOutcome.REFUSED}, (what, reports)
                num_refused += 1
            else:
                assert outcomes <= {ReloadOutcome.APPLIED, ReloadOutcome.UNCHANGED}, (what, reports)
                in_force = epoch_values(expected, keys)
                if in_force != planned[-1]:
                    planned.append(in_force)
                num_accepted += 1
            assert world.epochs.current.settings == in_force, what
            assert [dict(epoch.settings) for epoch in world.epochs.epochs] == planned, what
        await world.until(lambda: all(len(world.answers(p)) for p in range(NUM_PARTITIONS)), "answers")
    finally:
        feeding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await feeding
    await world.stop()
    used = [await answered_under(world, partition, planned) for partition in range(NUM_PARTITIONS)]
    shutil.rmtree(directory)
    return editor.kinds, num_accepted, num_refused, planned, set().union(*used), world


async def answered_under(world, partition, planned):
    """Compares every answer of a partition with one that is made here under the values that its hash stands for;
    returns the numbers of the epochs that answered something.
    """
    by_hash = {}
    for epoch, values in zip(world.epochs.epochs, planned, strict=True):
        by_hash.setdefault(epoch.config_hash, values)
        assert by_hash[epoch.config_hash] == values, "one hash for different values"
    predictor = AllCount()
    records = world.broker.read_committed("ticks", partition)
    answers = world.answers(partition)
    assert len(answers) == len(records)
    hashes = []
    for record, answer in zip(records, answers, strict=True):
        said, asked = json.loads(answer.value), json.loads(record.value)
        assert dict(answer.headers)["usp-source"].decode().endswith(f"/{record.offset}")
        key = ("ticks", partition, asked["symbol"])
        result = await predictor.step(
            [key], [asked["value"]], [asked["ts"]], [record.timestamp_ms * 1_000_000], by_hash[said["config_hash"]]
        )
        assert said["prediction"] == result.columns["predicted_next"][0], (partition, record.offset)
        if not hashes or hashes[-1] != said["config_hash"]:
            hashes.append(said["config_hash"])
    # in the order of the epochs, of which some may have answered nothing
    order = iter(epoch.config_hash for epoch in world.epochs.epochs)
    assert all(any(found == config_hash for found in order) for config_hash in hashes), hashes
    standing = await world.broker.committed_with_note("g", TopicPartition("ticks", partition))
    assert standing.offset == len(records)
    return set(hashes)


async def test_a_hundred_random_edits_under_load(tmp_path, monkeypatch):
    kinds, accepted, refused, planned, used, _ = await edits(tmp_path, monkeypatch, 100, seed=1)
    assert accepted >= 30 and refused >= 30 and len(used) >= 20 and len(planned) >= 25
    assert len(kinds) >= 12, kinds


@pytest.mark.long
async def test_a_thousand_random_edits_under_load(tmp_path, monkeypatch):
    kinds, accepted, refused, planned, used, world = await edits(tmp_path, monkeypatch, 1000, seed=2)
    assert accepted >= 300 and refused >= 300 and len(used) >= 200
    assert len(kinds) == 17, kinds
    print(f"{accepted} taken, {refused} refused, {len(planned)} epochs, {len(used)} of them answered; ", end="")
    print(f"{world.num_fed} ticks, none lost; {dict(kinds)}")
