"""An epoch's number leads back to the text that led to the epoch: a real file, watcher aside, up to the command."""

import asyncio

from mutation_worlds import World
from usp_daemon import cli
from usp_daemon.config import MutationFailedError, ReloadOutcome, ReloadTrigger
from usp_daemon.persistence import MemoryEpochLog
from usp_daemon.service import EpochBook, EpochMarks, ProgramEpoch, Reloader
from usp_daemon.wire import ResultEncoder

K = "orchestration.cusum_k"


async def make_epoch(epoch):
    return ProgramEpoch(
        number=epoch.number,
        settings=epoch.settings,
        config_hash=epoch.config_hash,
        parameters=None,
        identity={},
        encoder=ResultEncoder(config_hash=epoch.config_hash),
    )


class Replica:
    """What ``daemon_app`` puts together of a configuration, the book of epochs and the marks."""

    def __init__(self, directory, log, text="[orchestration]\ncusum_k = 0.5\n", has_changed=None):
        self.world = World(directory, text)
        self.log, self.has_changed = log, has_changed
        self.marked = []

    def mark(self, number, loaded):
        self.world.mutator().mark_epoch(number, loaded)
        self.marked.append(number)

    async def __aenter__(self):
        loaded = self.world.source().load()
        self.marks = EpochMarks(self.mark)
        self.epochs = EpochBook(self.log, make_epoch, instance="r", adopted_fn=self.marks.adopted)
        settings = loaded.settings
        await self.epochs.open(
            settings.predictor_values(), settings.predictor_hash(), loaded.base_hash, has_changed=self.has_changed
        )
        self.marks.accepted(loaded)
        self.reloader = Reloader(
            source=self.world.source(), started=loaded, epochs=self.epochs, check_fn=lambda settings: None,
            reported_fn=self.reported, asked=asyncio.Event(),
        )  # fmt: skip
        self.task = asyncio.create_task(self.marks.run())
        return self

    async def __aexit__(self, *error):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.epochs.close()

    def reported(self, report, now):
        if now is not None and report.outcome in (ReloadOutcome.APPLIED, ReloadOutcome.UNCHANGED):
            self.marks.accepted(now)

    def edit(self, old, new):
        text = self.world.file.read_text()
        assert old in text
        self.world.file.write_text(text.replace(old, new))

    async def reload(self):
        return await self.reloader.reload(ReloadTrigger.SIGNAL)

    async def has_marked(self, *numbers):
        async with asyncio.timeout(20.0):
            while self.marked != list(numbers):
                assert not self.task.done(), self.task.exception()
                await asyncio.sleep(0.001)

    def roll_back(self, to):
        return cli.run_command(["rollback", "--to", str(to), "--config", str(self.world.file)])


async def test_rollback_finds_each_epoch_under_its_number(tmp_path, capsys):
    async with Replica(tmp_path, MemoryEpochLog()) as replica:
        await replica.has_marked(1)
        texts = {1: replica.world.file.read_bytes()}
        for epoch, (old, new) in enumerate([("0.5", "0.6  # a person's"), ("0.6", "0.7")], start=2):
            replica.edit(f"cusum_k = {old}", f"cusum_k = {new}")
            texts[epoch] = replica.world.file.read_bytes()
            assert (await replica.reload()).epoch == epoch
            await replica.has_marked(*range(1, epoch + 1))
        for epoch in (2, 3, 1):
            assert replica.roll_back(epoch) == 0
            assert replica.world.file.read_bytes() == texts[epoch]
        assert f"{K}: 0.7 -> 0.5" in capsys.readouterr().out
        # the way back is an epoch as well
        report = await replica.reload()
        assert (report.outcome, report.epoch) == (ReloadOutcome.APPLIED, 4)
        await replica.has_marked(1, 2, 3, 4)
        assert replica.roll_back(9) == 2
        assert "no configuration under '9'" in capsys.readouterr().err


async def test_a_refused_text_is_no_epochs(tmp_path):
    async with Replica(tmp_path, MemoryEpochLog()) as replica:
        await replica.has_marked(1)
        first = replica.world.file.read_bytes()
        replica.edit("cusum_k = 0.5", "cusum_k = 1700.0")
        assert (await replica.reload()).outcome is ReloadOutcome.REFUSED
        assert replica.roll_back(1) == 0
        assert replica.world.file.read_bytes() == first
        assert replica.marked == [1]


async def test_another_replicas_epoch_is_marked_once_its_text_has_come_here(tmp_path):
    log = MemoryEpochLog()
    async with Replica(tmp_path / "a", log) as one, Replica(tmp_path / "b", log) as other:
        await one.has_marked(1)
        await other.has_marked(1)
        one.edit("cusum_k = 0.5", "cusum_k = 0.6")
        await one.reload()
        await one.has_marked(1, 2)
        await other.epochs.adopt_newest()
        assert other.epochs.current.number == 2
        other.edit("cusum_k = 0.5", "cusum_k = 0.6")
        assert (await other.reload()).outcome is ReloadOutcome.UNCHANGED
        await other.has_marked(1, 2)
        assert other.roll_back(1) == 0
        assert other.world.file.read_bytes() == other.world.first
        # one whose own text is another does not take it for that of the epoch
        old = "[orchestration]\ncusum_k = 0.9\n"
        async with Replica(tmp_path / "c", log, old, has_changed=False) as third:
            third.edit("cusum_k = 0.9", "cusum_k = 0.6")
            await third.reload()
            await third.has_marked(2)


async def test_the_later_text_of_an_epoch_counts(tmp_path):
    async with Replica(tmp_path, MemoryEpochLog()) as replica:
        await replica.has_marked(1)
        replica.edit("[orchestration]", "# a remark\n[orchestration]")
        assert (await replica.reload()).outcome is ReloadOutcome.UNCHANGED
        await replica.has_marked(1, 1)
        await replica.reload()  # nothing has changed: nothing is written
        remarked = replica.world.file.read_bytes()
        replica.edit("cusum_k = 0.5", "cusum_k = 0.6")
        await replica.reload()
        await replica.has_marked(1, 1, 2)
        assert replica.roll_back(1) == 0
        assert replica.world.file.read_bytes() == remarked


async def test_a_disk_that_refuses_ends_nothing(tmp_path):
    async with Replica(tmp_path, MemoryEpochLog()) as replica:
        await replica.has_marked(1)
        mark, refused = replica.mark, asyncio.Event()
        loop = asyncio.get_running_loop()

        def refuse(number, loaded):
            loop.call_soon_threadsafe(refused.set)
            raise MutationFailedError("no space is left")

        replica.marks._mark_fn = refuse
        replica.edit("cusum_k = 0.5", "cusum_k = 0.6")
        await replica.reload()
        await asyncio.wait_for(refused.wait(), 20.0)
        replica.marks._mark_fn = mark
        replica.edit("cusum_k = 0.6", "cusum_k = 0.7")
        await replica.reload()
        await replica.has_marked(1, 3)
