"""Logs of epochs: what holds for every form, what a file system can do to one, and what a broker can."""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from epoch_samples import epoch
from group_worlds import until
from kafka_broker import clients
from snapshot_samples import GROUP, assert_same, sample
from snapshot_topic import TopicWorld
from usp_daemon.persistence import (
    EPOCH_CRASH_POINTS,
    KEEP_EPOCHS,
    DirectoryEpochLog,
    EpochLogError,
    MemoryEpochLog,
    PersistenceError,
    decode_epoch,
    encode_epoch,
)
from usp_daemon.transport.kafka import TopicEpochLog, _snapshot_reader
from usp_daemon.transport.kafka._epoch_topic import TOPIC_EPOCH_CRASH_POINTS, EpochIndex

PROGRAM = Path(__file__).resolve().parent.parent / "epoch_samples.py"


class MemoryLogs:
    def __init__(self):
        self.epochs = {}

    async def log(self, **options):
        return MemoryEpochLog(self.epochs, **options)

    async def close(self):
        pass


class DirectoryLogs:
    def __init__(self, path):
        self.path = path
        self.opened = []

    async def log(self, *, group=GROUP, **options):
        log = DirectoryEpochLog(self.path, group=group, **options)
        self.opened.append(log)
        await log.open()
        return log

    @property
    def directory(self):
        (found,) = self.path.glob("*/epochs")
        return found

    async def damage(self, number, change_fn):
        path = self.directory / f"{number:08d}.json"
        path.write_bytes(change_fn(path.read_bytes()))

    async def remove(self, number):
        (self.directory / f"{number:08d}.json").unlink()

    async def close(self):
        for log in self.opened:
            await log.close()


class TopicLogs(TopicWorld):
    async def log(self, *, group=GROUP, request_timeout_ms=20_000, **options):
        log = TopicEpochLog(
            self.kafka(group=group, request_timeout_ms=request_timeout_ms), self.topic, instance="one", **options
        )
        self._open.push_async_callback(log.close)
        await log.open()
        return log

    def key(self, number, group=GROUP):
        return f"{group}/{self.kafka().input_topic}/epochs/{number:08d}".encode()

    async def damage(self, number, change_fn):
        await self.put([(self.key(number), change_fn(encode_epoch(epoch(number))), [])], partition=0)

    async def remove(self, number):
        await self.put([(self.key(number), None, [])], partition=0)

    async def close(self):
        await self._open.aclose()


FORMS = ["directory", pytest.param("topic", marks=pytest.mark.kafka)]


@pytest.fixture
async def logs(request, tmp_path):
    form = getattr(request, "param", None)
    if form == "memory":
        made = MemoryLogs()
    elif form == "directory":
        made = DirectoryLogs(tmp_path)
    else:
        made = TopicLogs(request.getfixturevalue("kafka_bootstrap_servers"))
    yield made
    await made.close()


every_form = pytest.mark.parametrize("logs", ["memory", *FORMS], indirect=True)
durable_forms = pytest.mark.parametrize("logs", FORMS, indirect=True)


# What every log does


@every_form
async def test_what_was_appended_is_read_in_order_by_everybody(logs):
    log = await logs.log()
    assert await log.read() == ()
    for number in (1, 2, 3):
        assert await log.append(epoch(number))
    expected = tuple(epoch(number) for number in (1, 2, 3))
    assert await log.read() == expected
    other = await logs.log()
    assert await other.read() == expected
    assert await other.append(epoch(4))
    assert await log.read() == (*expected, epoch(4))
    (_, _, third, _) = await other.read()
    assert [type(value) for value in third.settings.values()] == [float, int, bool, str]


@every_form
async def test_a_number_is_given_once(logs):
    one, two = await logs.log(), await logs.log()
    assert await one.append(epoch(1, "one"))
    assert not await two.append(epoch(1, "two"))
    assert not await one.append(epoch(1, "one"))
    assert await two.read() == (epoch(1, "one"),)


@every_form
async def test_numbers_leave_no_gap(logs):
    log = await logs.log()
    assert await log.append(epoch(7))  # the first one kept may have any number
    with pytest.raises(EpochLogError, match="9 cannot follow epoch 7"):
        await log.append(epoch(9))
    assert not await log.append(epoch(6))
    assert await log.read() == (epoch(7),)


@every_form
async def test_of_many_who_append_the_same_number_one_wins(logs):
    members = [(await logs.log(), f"member {index}") for index in range(3)]
    for number in range(1, 3):
        won = await asyncio.gather(*(log.append(epoch(number, name)) for log, name in members))
        assert sum(won) == 1
        winner = members[won.index(True)][1]
        for log, _ in members:
            assert (await log.read())[-1] == epoch(number, winner)


@every_form
async def test_the_oldest_go_and_their_numbers_are_never_given_again(logs):
    log = await logs.log(keep=3)
    for number in range(1, 6):
        assert await log.append(epoch(number))
    expected = tuple(epoch(number) for number in (3, 4, 5))
    assert await log.read() == expected
    other = await logs.log(keep=3)
    assert await other.read() == expected
    assert not await other.append(epoch(1, "other"))
    assert await log.read() == expected


def test_five_hundred_are_kept():
    assert KEEP_EPOCHS == 500


@every_form
async def test_whoever_reads_meanwhile_sees_whole_epochs_in_order(logs):
    writer, reader = await logs.log(keep=4), await logs.log(keep=4)
    is_done = False
    seen = [()]

    async def read():
        while not is_done:
            seen.append(await reader.read())
            await asyncio.sleep(0)

    reading = asyncio.create_task(read())
    for number in range(1, 9):
        assert await writer.append(epoch(number))
    is_done = True
    await reading
    newest = [epochs[-1].number if epochs else 0 for epochs in seen]
    assert newest == sorted(newest)
    for epochs in seen:
        assert epochs == tuple(epoch(one.number) for one in epochs)


@durable_forms
async def test_groups_do_not_mix(logs):
    log, other = await logs.log(), await logs.log(group=f"{GROUP}/other")
    assert await log.append(epoch(1))
    assert await other.read() == ()
    assert await other.append(epoch(1, "other"))
    assert await log.read() == (epoch(1),)


# Damage


DAMAGES = {
    "a flipped bit": lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "no JSON": lambda data: b"\x00" * len(data),
    "a list": lambda data: b"[]",
    "another value": lambda data: data.replace(b'"reason":"test"', b'"reason":"tset"'),
    "another number": lambda data: encode_epoch(epoch(3)),
}


@durable_forms
@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_one_is_an_error_that_names_it(logs, damage):
    log = await logs.log()
    for number in (1, 2):
        await log.append(epoch(number))
    await logs.damage(2, DAMAGES[damage])
    with pytest.raises(PersistenceError, match=r"00000002\.json|partition 0, offset [0-9]+"):
        await (await logs.log()).read()
    await logs.damage(2, lambda data: encode_epoch(epoch(2)))  # from a backup
    assert await (await logs.log()).read() == (epoch(1), epoch(2))


@durable_forms
async def test_a_missing_one_is_an_error(logs):
    log = await logs.log()
    for number in (1, 2, 3):
        await log.append(epoch(number))
    await logs.remove(2)
    with pytest.raises(EpochLogError, match="epoch 2 is missing"):
        await (await logs.log()).read()


def test_every_flipped_bit_and_every_truncation_is_noticed():
    content = encode_epoch(epoch(1)).rstrip(b"\n")
    for index in range(8 * len(content)):
        changed = bytearray(content)
        changed[index // 8] ^= 1 << index % 8
        # White space and the case of an escape's digits mean nothing; what means the same is the same.
        try:
            assert decode_epoch(bytes(changed), "here") == epoch(1)
        except EpochLogError as error:
            assert "here" in str(error)
    for length in range(len(content)):
        with pytest.raises(EpochLogError, match="here"):
            decode_epoch(content[:length], "here")


def test_the_format_of_a_later_version_is_told_from_damage():
    fields = json.loads(encode_epoch(epoch(1)))
    del fields["sha256"]
    fields["format_version"] = 2
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    fields["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(EpochLogError, match="newer version"):
        decode_epoch(json.dumps(fields).encode(), "here")


def test_no_number_that_json_cannot_hold():
    with pytest.raises(ValueError, match="JSON"):
        encode_epoch(epoch(1, settings={"a": float("nan")}))


# The directory


def child(path, **arguments):
    text = json.dumps({"directory": str(path), "group": GROUP, "name": "child"} | arguments)
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def names(path):
    return sorted(entry.name for entry in path.glob("*/epochs/*"))


async def test_processes_that_race_get_different_numbers(tmp_path):
    processes = [child(tmp_path, name=f"child {index}", count=20) for index in range(2)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    won = [[int(line) for line in process.communicate(timeout=120)[0].split()] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(won[0] + won[1]) == list(range(1, 41))
    log = DirectoryEpochLog(tmp_path, group=GROUP)
    await log.open()
    owners = {number: f"child {index}" for index, numbers in enumerate(won) for number in numbers}
    assert await log.read() == tuple(epoch(number, owners[number]) for number in range(1, 41))
    await log.close()


@pytest.mark.parametrize("crash_point", EPOCH_CRASH_POINTS)
async def test_killed_at_every_crash_point(crash_point, tmp_path):
    process = child(tmp_path, count=5, crash_point=crash_point, crash_number=3)
    output, _ = process.communicate("go\n", timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert output.split() == ["1", "2"]
    is_linked = crash_point in ("epoch.before_directory_fsync", "epoch.appended")
    left = [name for name in names(tmp_path) if name.endswith(".tmp")]
    assert len(left) == (0 if is_linked else 1)
    logs = DirectoryLogs(tmp_path)
    log = await logs.log()
    expected = tuple(epoch(number, "child") for number in range(1, 4 if is_linked else 3))
    assert await log.read() == expected
    # What is left may be somebody's who is writing it, unless it is old.
    assert await log.append(epoch(len(expected) + 1))
    assert [name for name in names(tmp_path) if name.endswith(".tmp")] == left
    for name in left:
        os.utime(logs.directory / name, (0, time.time() - 7200))
    assert await log.append(epoch(len(expected) + 2))
    assert names(tmp_path) == [f"{number:08d}.json" for number in range(1, len(expected) + 3)]
    await logs.close()


async def test_an_append_is_flushed_before_and_after_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, link = os.fsync, os.link

    def watched_fsync(fd):
        calls.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
        fsync(fd)

    def watched_link(source, target):
        calls.append(("link", os.path.basename(target)))
        link(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "link", watched_link)
    log = DirectoryEpochLog(tmp_path / "made", group="group")
    await log.open()
    assert calls == [("fsync", tmp_path.name), ("fsync", "made"), ("fsync", "group")]
    calls.clear()
    assert await log.append(epoch(1))
    (first, temporary), *rest = calls
    assert first == "fsync"
    assert temporary.endswith(".tmp")
    assert rest == [("link", "00000001.json"), ("fsync", "epochs")]
    await log.close()


async def test_a_directory_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "group").write_text("a file")
    log = DirectoryEpochLog(tmp_path, group="group")
    with pytest.raises(EpochLogError, match=str(tmp_path)):
        await log.open()
    await log.close()
    with pytest.raises(EpochLogError, match="not open"):
        await log.read()


# The topic


@pytest.mark.kafka
async def test_snapshots_and_epochs_in_one_partition_do_not_disturb_each_other(logs):
    store = await logs.holder(partition=0, max_request_bytes=16_384)
    log = await logs.log()
    for number in range(1, 4):
        saving = asyncio.create_task(
            store.save(dataclasses.replace(sample(number, num_symbols=100, width=80), partition=0))
        )
        assert await log.append(epoch(number))
        await saving
    assert await (await logs.log()).read() == tuple(epoch(number) for number in (1, 2, 3))
    found = await (await logs.store()).newest("ticks", 0, 100)
    assert_same(found, dataclasses.replace(sample(3, num_symbols=100, width=80), partition=0))
    kept = await logs.kept(0)
    assert {key for key in kept if "/epochs/" in key} == {logs.key(number).decode() for number in (1, 2, 3)}


@pytest.mark.kafka
async def test_an_epoch_between_the_chunks_of_a_snapshot_is_found(logs):
    """A reader of snapshots leaps over chunks; whoever did so here would miss what stands between them."""
    started, go_on = asyncio.Event(), asyncio.Event()
    store = await logs.holder(partition=0, max_request_bytes=16_384)
    log = await logs.log()
    sending = store._send

    async def send(known, producer, records):
        started.set()
        await go_on.wait()
        return await sending(known, producer, records)

    store._send = send
    saving = asyncio.create_task(store.save(dataclasses.replace(sample(5, num_symbols=100, width=80), partition=0)))
    await started.wait()
    # The snapshot's transaction is open and holds back readers, so the record goes there without asking.
    await logs.put([(logs.key(1), encode_epoch(epoch(1)), [])], partition=0)
    go_on.set()
    await saving
    assert await log.read() == (epoch(1),)
    assert await log.append(epoch(2))
    found = await (await logs.store()).newest("ticks", 0, 100)
    assert found.offset == 5


@pytest.mark.kafka
async def test_what_was_given_up_goes_with_compaction(logs):
    log = await logs.log(keep=2)
    for number in range(1, 5):
        await log.append(epoch(number))
    assert set(await logs.kept(0)) == {logs.key(number).decode() for number in (3, 4)}


class Dead(BaseException):
    pass


@pytest.mark.kafka
@pytest.mark.parametrize("crash_point", TOPIC_EPOCH_CRASH_POINTS)
async def test_whoever_dies_while_appending_leaves_the_epoch_or_nothing(logs, crash_point):
    def die(point):
        if point == crash_point:
            raise Dead

    await (await logs.log()).append(epoch(1))
    dying = await logs.log(crash_fn=die)
    with pytest.raises(Dead):
        await dying.append(epoch(2, "dead"))
    heir = await logs.log()
    is_there = crash_point == "epoch.appended"
    assert await heir.append(epoch(2, "heir")) is not is_there
    assert await heir.read() == (epoch(1), epoch(2, "dead" if is_there else "heir"))


@pytest.mark.kafka
@pytest.mark.parametrize("crash_point", TOPIC_EPOCH_CRASH_POINTS[:-1])
async def test_whoever_is_overtaken_while_appending_is_fenced_and_told_so(logs, crash_point):
    """As SIGSTOP at each step, until another has appended the same number."""
    heir = await logs.log()
    slow = await logs.log()
    write = slow._write
    overtaken = 0

    async def overtake():
        nonlocal overtaken
        overtaken += 1
        if overtaken == 1:
            assert await heir.append(epoch(1, "heir"))

    if crash_point == "epoch.opened":
        read = slow._read_anew

        async def slow_read():
            epochs = await read()
            await overtake()
            return epochs

        slow._read_anew = slow_read
    else:

        async def slow_write(producer, one):
            method = "create_batch" if crash_point == "epoch.begun" else "commit_transaction"
            original = getattr(producer.client, method)
            if method == "create_batch":
                await producer.client.begin_transaction()
                producer.client.begin_transaction = overtake
            else:

                async def commit():
                    await overtake()
                    await original()

                producer.client.commit_transaction = commit
            await write(producer, one)

        slow._write = slow_write
    assert not await slow.append(epoch(1, "slow"))
    assert overtaken
    assert await slow.read() == (epoch(1, "heir"),)


@pytest.mark.kafka
async def test_a_lost_answer_to_the_commit_is_found_out(logs):
    log = await logs.log()
    write = log._write
    lost = []

    async def lose(producer, one):
        await write(producer, one)
        if not lost:
            lost.append(one)
            raise ConnectionError("lost")

    log._write = lose
    assert await log.append(epoch(1, "one"))
    assert lost == [epoch(1, "one")]
    assert await log.read() == (epoch(1, "one"),)
    assert len([key for _, key, _, _ in await logs.records(0) if key == logs.key(1)]) == 1


@pytest.fixture
def consumers(monkeypatch):
    """Every client that reads, as it is made."""
    made = []

    class Counted(AIOKafkaConsumer):
        def __init__(self, *arguments, **options):
            made.append(self)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(_snapshot_reader, "AIOKafkaConsumer", Counted)
    return made


@pytest.mark.kafka
async def test_twenty_looks_take_one_client_and_each_sees_what_another_has_appended(logs, consumers):
    log, other = await logs.log(), await logs.log()
    assert await log.read() == ()
    for number in range(1, 21):
        if number % 4 == 0:  # also twice between two looks, and not at all
            assert await other.append(epoch(number // 2 - 1)) and await other.append(epoch(number // 2))
        assert await log.read() == tuple(epoch(n) for n in range(1, 2 * (number // 4) + 1))
    by_append = 10  # each by one of its own
    assert len(consumers) == 1 + by_append
    await log.close()
    assert consumers[0]._closed


@pytest.mark.kafka
async def test_between_two_looks_nothing_is_fetched(logs, consumers):
    log = await logs.log()
    assert await log.append(epoch(1)) and await log.read() == (epoch(1),)
    kept = consumers[-1]
    client, sent = kept._client, []
    send = client.send

    async def counted(node, request, **options):
        sent.append(type(request).__name__)
        return await send(node, request, **options)

    client.send = counted
    await asyncio.sleep(2 * logs.kafka().fetch_max_wait_ms / 1e3 + 0.2)  # the fetch under way may still end
    assert sent.count("FetchRequest") <= 1, sent
    assert await log.read() == (epoch(1),)
    assert sent.count("OffsetRequest") == 2, sent


@pytest.mark.kafka
async def test_a_look_waits_for_what_an_open_transaction_holds_back(logs):
    """The kept client must not take the beginning of the open transaction for the end of the log."""
    log, other = await logs.log(), await logs.log()
    assert await other.append(epoch(1)) and await log.read() == (epoch(1),)
    stranger = AIOKafkaProducer(bootstrap_servers=logs.servers, transactional_id=f"stranger-{logs.run}")
    await stranger.start()
    try:
        await stranger.begin_transaction()
        await stranger.send_and_wait(logs.topic, b"x", key=b"strange", partition=0)
        await logs.put([(logs.key(2), encode_epoch(epoch(2)), [])], partition=0)
        looking = asyncio.create_task(log.read())
        done, _ = await asyncio.wait([looking], timeout=1.0)
        assert not done
        await stranger.commit_transaction()
        assert await looking == (epoch(1), epoch(2))
    finally:
        await stranger.stop()


@pytest.mark.kafka
async def test_a_topic_that_was_made_anew_is_read_from_its_beginning(logs):
    log, other = await logs.log(), await logs.log()
    for number in (1, 2, 3):
        assert await other.append(epoch(number))
    assert len(await log.read()) == 3
    async with clients.admin(logs.servers) as admin:
        await admin.delete_topics([logs.topic])
    heirs = await logs.log()

    async def appended():
        with contextlib.suppress(EpochLogError):
            return await heirs.append(epoch(1, "heir"))

    await until(appended)

    async def is_seen():
        with contextlib.suppress(EpochLogError):
            return await log.read() == (epoch(1, "heir"),)

    await until(is_seen)


@pytest.mark.kafka
async def test_a_look_that_is_given_up_leaves_no_client_behind(logs, consumers):
    log = await logs.log()
    assert await log.read() == ()
    stranger = AIOKafkaProducer(bootstrap_servers=logs.servers, transactional_id=f"stranger-{logs.run}")
    await stranger.start()
    try:
        await stranger.begin_transaction()
        await stranger.send_and_wait(logs.topic, b"x", key=b"strange", partition=0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await log.read()
        assert [consumer._closed for consumer in consumers] == [True]
        await stranger.abort_transaction()
    finally:
        await stranger.stop()
    assert await log.read() == ()
    assert len(consumers) == 2


@pytest.mark.kafka
async def test_no_broker_is_said_in_time(own_broker):
    logs = TopicLogs(own_broker.bootstrap_servers)
    log = await logs.log(request_timeout_ms=1_500)
    assert await log.append(epoch(1))
    await asyncio.get_running_loop().run_in_executor(None, own_broker.kill)
    with pytest.raises(EpochLogError):
        await log.read()
    with pytest.raises(EpochLogError, match="epoch 2"):
        await log.append(epoch(2))
    await asyncio.get_running_loop().run_in_executor(None, own_broker.start)

    async def appended():
        with contextlib.suppress(EpochLogError):
            return await log.append(epoch(2))

    await until(appended)
    assert await log.read() == (epoch(1), epoch(2))
    await logs.close()


def test_keys_of_others_are_not_taken():
    index = EpochIndex("g", "t", "here")
    content = encode_epoch(epoch(1))
    for key in (
        None, b"", b"g/t/0/0/manifest", b"g/t/0/owner", b"g/t/epochs/", b"g/t/epochs/1", b"g/t/epochs/0000000x",
        b"h/t/epochs/00000001", b"g/t/epochs/00000001/0/0", b"g/t/epochs/5/epochs/00000001",
    ):  # fmt: skip
        index.take(5, key, content, [])
    assert index.in_order() == ()
    assert index.take(6, index.key(1), content, []) == 7
    assert index.in_order() == (epoch(1),)
    index.take(8, index.key(1), encode_epoch(epoch(1, "other")), [])
    with pytest.raises(EpochLogError, match="offset 8 holds another epoch 1"):
        index.in_order()
