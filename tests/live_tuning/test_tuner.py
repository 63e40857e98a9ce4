"""The loop step by step: real configuration, mutator and test; clock, campaign, service and ticks are the test's."""

import asyncio
import types

import pytest

from mutation_worlds import Quick, World
from usp_daemon.config import ConfigError, EntryStatus, MutationFailedError
from usp_daemon.live_tuning import (
    CampaignFailedError,
    CampaignProgress,
    Decision,
    Phase,
    StateFile,
    Trigger,
    Tuner,
    TunerOptions,
)
from usp_daemon.tuning import SequentialPlan, SequentialTest

KEY, OTHER_KEY = "orchestration.cusum_k", "orchestration.volatility_alpha"
BETTER = Decision(apply={KEY: 0.6}, num_trials=8, best_value=0.9, evidence={"values_on_holdout": {"apply traced": 0.9}})
WORSE, GOOD = 0.3, -0.3  # differences of scores


class Killed(BaseException):
    """The process ends here."""


class Probation:
    """Ticks whose scores differ by ``difference`` come one by one, whenever the loop lets them."""

    def __init__(self, test, difference):
        plan = SequentialPlan(min_ticks=64, max_ticks=640, num_symbols=1)
        self.test = test or SequentialTest(plan)
        self.difference = difference
        self.was_cancelled = False
        self.report, self.ratio = None, 1.0 + difference

    @property
    def verdict(self):
        return self.test.verdict

    def saved(self):
        return self.test.to_dict()

    async def run(self):
        try:
            while not self.test.verdict.is_final:
                self.test.update(["a"] * 16, [self.difference] * 16)
                await asyncio.sleep(0)
            return self.test.verdict
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


class Metrics:
    def __init__(self):
        self.states, self.campaigns, self.mutations, self.trials, self.ratios = [], [], [], 0, []

    def record_tuner_state(self, state):
        self.states.append(state)

    def record_tuner_trials(self, num_trials, best):
        self.trials += num_trials

    def record_tuner_campaign(self, outcome):
        self.campaigns.append(outcome)

    def record_tuner_mutation(self, outcome):
        self.mutations.append(outcome)

    def record_probation(self, ratio):
        self.ratios.append(ratio)


class Bench:
    """A tuner, and everything around it under the test's control; what is on the disk outlives the tuner."""

    def __init__(self, root, text="", *, decision=BETTER, difference=GOOD, mode="autonomous"):
        # Ticks between two changes are asked for only where a test counts them.
        self.world = World(root, f'[tuning]\nschedule_hours = 24.0\nmode = "{mode}"\n{text}\n[io]\n')
        self.mode = mode
        self.decision, self.difference = decision, difference
        self.is_leader, self.follows = True, True
        self.metrics, self.probations, self.requests, self.reloads = Metrics(), [], [], 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.finished = 0
        self.ticks = self.disk = None
        self.crash_at = None
        self.read()
        self.new_tuner()

    def read(self):
        """The service takes up what stands in the files."""
        settings = self.world.settings()
        self.current = types.SimpleNamespace(
            settings=settings.predictor_values(), config_hash=settings.predictor_hash(), parameters=None
        )

    def new_tuner(self):
        async def call(function, *arguments, **named):
            return function(*arguments, **named)

        options = {} if self.ticks is None else {"ticks_fn": lambda: self.ticks}
        if self.disk is not None:
            options["disk"] = self.disk
        bench = self

        class Epochs:
            @property
            def current(self):
                return bench.current

        applies = ("traced",) if self.mode == "autonomous" else ()
        self.tuner = Tuner(
            options=TunerOptions(ticks_path="ticks", history_path="h", applies=applies, proposes=("structural",)),
            settings=self.world.settings(),
            state=StateFile(self.world.state),
            mutator=self.world.mutator(**options),
            epochs=Epochs(),
            campaign_fn=self.campaign,
            probation_fn=self.probation,
            settings_fn=self.world.settings,
            is_leader_fn=lambda: self.is_leader,
            metrics=self.metrics,
            reload_fn=self.reload,
            finished_fn=self.finish,
            now_ns_fn=lambda: self.world.clocks.wall_ns,
            call_fn=call,
            crash_fn=self.crash,
        )

    def reload(self):
        self.reloads += 1

    def finish(self):
        self.finished += 1

    def crash(self, point):
        if point == self.crash_at:
            self.crash_at = None
            raise Killed(point)

    async def campaign(self, request, progress_fn):
        self.requests.append(request)
        await self.gate.wait()
        progress_fn(CampaignProgress(num_trials=8, num_total=8, best_value=0.9))
        if isinstance(self.decision, Exception):
            raise self.decision
        return self.decision

    async def probation(self, former, config_hash, test):
        assert config_hash == self.current.config_hash
        self.probations.append((dict(former), Probation(test, self.difference)))
        return self.probations[-1][1]

    async def turn(self, times=1, seconds=1.0):
        for _ in range(times):
            self.world.clocks.go_on(seconds)
            await self.tuner.turn()
            for _ in range(3):
                await asyncio.sleep(0)
            if self.follows:
                self.read()

    async def begin(self):
        await self.tuner._begin()

    async def until(self, phase, limit=200, seconds=1.0):
        for _ in range(limit):
            if self.tuner.phase is phase:
                return
            await self.turn(seconds=seconds)
        raise AssertionError((phase, self.tuner.state, self.world.events()))

    async def kill(self):
        """What is in memory is gone; the service comes up with what the files say."""
        await self.tuner._stop_tasks()
        self.read()
        self.new_tuner()
        await self.begin()

    async def once_round(self):
        """From idle to idle, by the operator."""
        self.tuner.ask(Trigger.OPERATOR)
        await self.until(Phase.CAMPAIGN)
        await self.until(Phase.IDLE)


async def bench(tmp_path, text="", **options):
    made = Bench(tmp_path, text, **options)
    await made.begin()
    return made


KEPT = ["CAMPAIGN_STARTED", "CAMPAIGN_ENDED", "MUTATION_APPLIED", "PROBATION_STARTED", "MUTATION_KEPT"]
ROLLED_BACK = [*KEPT[:-1], "MUTATION_ROLLED_BACK"]


async def test_better_settings_are_applied_proved_and_kept(tmp_path):
    b = await bench(tmp_path)
    await b.once_round()
    assert b.world.events() == KEPT and b.world.is_whole() is True
    assert b.world.settings()[KEY] == 0.6
    former, _ = b.probations[0]
    assert former[KEY] == 0.5 and b.finished == 1
    assert b.metrics.campaigns == ["found"] and b.metrics.mutations == ["applied", "kept"] and b.metrics.trials == 8
    assert list(dict.fromkeys(b.metrics.states)) == ["idle", "campaign", "decided", "applied", "probation"]
    assert b.metrics.ratios[-1] == pytest.approx(0.7)
    evidence = b.world.lines()[2]["evidence"]
    assert evidence == BETTER.evidence  # the campaign's, with the change itself


async def test_worse_settings_go_back_and_stay_away(tmp_path):
    b = await bench(tmp_path, difference=WORSE)
    await b.once_round()
    assert b.world.events() == ROLLED_BACK and b.world.file.read_bytes() == b.world.first
    assert b.world.lines()[-1]["evidence"]["verdict"] == "worse"
    await b.once_round()
    assert b.world.events()[len(ROLLED_BACK) :] == ["CAMPAIGN_STARTED", "CAMPAIGN_ENDED", "MUTATION_REJECTED"]
    assert b.metrics.mutations == ["applied", "rolled_back", "rejected"]
    b.world.clocks.go_on(25 * 3600)  # tabu for a day
    await b.once_round()
    assert b.world.events()[-5:] == ROLLED_BACK


POINTS = [
    "entered.campaign", "campaign.ended", "entered.decided", "mutation.applied", "entered.applied",
    "entered.probation", "probation.saved", "mutation.kept", "mutation.rolled_back", "entered.idle",
]  # fmt: skip


@pytest.mark.parametrize("difference", [GOOD, WORSE])
@pytest.mark.parametrize("point", POINTS)
async def test_killed_anywhere_it_comes_to_the_same_end(tmp_path, point, difference):
    b = await bench(tmp_path, difference=difference)
    b.crash_at = point
    b.tuner.ask(Trigger.OPERATOR)
    killed = False
    for _ in range(120):
        try:
            await b.turn(seconds=11.0)  # a probation is saved every 10 s
        except Killed:
            killed = True
            await b.kill()
            if b.tuner.phase is Phase.IDLE and not b.world.events():
                b.tuner.ask(Trigger.OPERATOR)
        if b.tuner.phase is Phase.IDLE and b.world.events():
            break
    not_on_the_way = "mutation.rolled_back" if difference == GOOD else "mutation.kept"
    assert killed == (point != not_on_the_way)
    events = b.world.events()
    assert events.count("MUTATION_APPLIED") == 1
    assert events.count("MUTATION_KEPT") == (difference == GOOD)
    assert events.count("MUTATION_ROLLED_BACK") == (difference == WORSE)
    assert b.world.settings()[KEY] == (0.6 if difference == GOOD else 0.5)
    assert len({request.name for request in b.requests}) == 1, "the campaign was begun anew instead of continued"
    assert b.world.is_whole() is True
    if difference == WORSE:
        assert b.world.mutator().check({KEY: 0.6}), "not remembered as tried"
    await b.turn(30)
    assert b.world.events() == events and b.tuner.phase is Phase.IDLE


class Dying(Quick):
    """Dies when the configuration is put in its place: before that, or after it."""

    def __init__(self, when):
        self.when = when

    def replace(self, source, target):
        if str(target).endswith("config.toml") and self.when:
            if self.when == "after":
                super().replace(source, target)
            self.when = ""
            raise Killed
        super().replace(source, target)


@pytest.mark.parametrize("difference", [GOOD, WORSE])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_killed_within_the_change_itself(tmp_path, when, difference):
    b = await bench(tmp_path, difference=difference)
    b.disk = Dying(when)
    b.new_tuner()
    await b.begin()
    b.tuner.ask(Trigger.OPERATOR)
    with pytest.raises(Killed):
        await b.until(Phase.PROBATION)
    b.disk = Dying(when) if difference == WORSE else None  # and once more, within the way back
    await b.kill()
    if difference == WORSE:
        b.disk.when = ""
        await b.until(Phase.PROBATION)
        b.disk.when = when
        with pytest.raises(Killed):
            await b.until(Phase.IDLE, seconds=11.0)
        await b.kill()
    await b.until(Phase.IDLE)
    events = [event for event in b.world.events() if event != "MUTATION_FAILED"]
    assert events == (KEPT if difference == GOOD else ROLLED_BACK)
    assert b.world.settings()[KEY] == (0.6 if difference == GOOD else 0.5)
    assert b.world.is_whole() is True and not b.world.changes_and_undoes()


@pytest.mark.parametrize("phase", [Phase.CAMPAIGN, Phase.DECIDED, Phase.APPLIED, Phase.PROBATION])
async def test_started_again_in_any_phase_it_goes_on(tmp_path, phase):
    b = await bench(tmp_path)
    b.tuner.ask(Trigger.OPERATOR)
    await b.until(phase)
    await b.kill()
    assert b.tuner.phase is phase
    assert b.reloads == (phase is Phase.APPLIED)
    await b.until(Phase.IDLE)
    assert b.world.events() == KEPT


async def test_a_probation_goes_on_with_the_evidence_it_had(tmp_path):
    b = await bench(tmp_path)
    b.tuner.ask(Trigger.OPERATOR)
    await b.until(Phase.PROBATION)
    while b.tuner.state.probation.test is None:
        await b.turn(seconds=11.0)
    pairs = b.tuner.state.probation.test["num_pairs"]
    assert pairs > 0
    await b.kill()
    await b.turn()
    _, second = b.probations[-1]
    assert len(b.probations) == 2 and second.test.summary().num_pairs >= pairs


async def test_the_schedule_counts_from_the_first_start_and_over_restarts(tmp_path):
    b = await bench(tmp_path, decision=Decision(reason="no better"))
    await b.turn(2)
    b.world.clocks.go_on(23 * 3600)
    await b.turn(2)
    assert b.tuner.phase is Phase.IDLE and not b.requests
    b.world.clocks.go_on(3600)
    await b.turn(4)
    assert b.metrics.campaigns == ["nothing"] and len(b.requests) == 1
    await b.kill()
    b.world.clocks.go_on(23 * 3600)
    await b.turn(2)
    assert len(b.requests) == 1
    b.world.clocks.go_on(3600)
    await b.turn(4)
    assert (
        len(b.requests) == 2 and b.requests[0].name != b.requests[1].name and b.requests[0].seed != b.requests[1].seed
    )
    assert b.world.lines()[0]["reason"].endswith("by schedule")


async def test_drift_begins_one_campaign(tmp_path):
    b = await bench(tmp_path, decision=Decision(reason="no better"))
    b.tuner.ask(Trigger.DRIFT)
    await b.until(Phase.CAMPAIGN)
    b.tuner.ask(Trigger.DRIFT)  # again, while it is looked into
    await b.until(Phase.IDLE)
    await b.turn(10)
    assert len(b.requests) == 1 and b.world.lines()[0]["reason"].endswith("by drift")


async def test_only_the_leader_searches(tmp_path):
    b = await bench(tmp_path)
    b.is_leader = False
    b.tuner.ask(Trigger.OPERATOR)
    b.world.clocks.go_on(30 * 3600)
    await b.turn(3)
    assert b.tuner.phase is Phase.IDLE
    b.gate.clear()
    b.is_leader = True
    await b.turn(3)
    assert b.tuner.phase is Phase.CAMPAIGN and len(b.requests) == 1
    b.is_leader = False
    await b.turn(3)
    assert b.tuner._campaign is None
    b.gate.set()
    await b.turn(3)
    assert b.tuner.phase is Phase.CAMPAIGN
    b.is_leader = True
    await b.until(Phase.IDLE)
    assert b.requests[0] == b.requests[1] and b.world.events() == KEPT


async def test_a_probation_is_finished_by_who_began_it(tmp_path):
    b = await bench(tmp_path)
    b.tuner.ask(Trigger.OPERATOR)
    await b.until(Phase.PROBATION)
    b.is_leader = False
    await b.until(Phase.IDLE)
    assert b.world.events() == KEPT


async def test_propose_writes_it_down_and_changes_nothing(tmp_path):
    proposal = Decision(propose={KEY: 0.9}, num_trials=8, best_value=0.8, evidence={"why": "0.8 on the holdout"})
    b = await bench(tmp_path, decision=proposal, mode="propose")
    await b.once_round()
    assert b.world.events() == ["CAMPAIGN_STARTED", "CAMPAIGN_ENDED", "PROPOSAL"]
    assert b.world.file.read_bytes() == b.world.first
    (path,) = (b.world.state / "proposals").glob("*.json")
    assert "cusum_k = 0.9" in path.read_text() and "0.8 on the holdout" in path.read_text()
    assert b.metrics.mutations == ["proposed"] and b.metrics.campaigns == ["proposed"]


async def test_both_a_change_and_a_proposal(tmp_path):
    both = Decision(apply={KEY: 0.6}, propose={"kernels.log_sig_depth": 4}, num_trials=8, best_value=0.8)
    b = await bench(tmp_path, decision=both)
    await b.once_round()
    assert b.world.events() == ["CAMPAIGN_STARTED", "CAMPAIGN_ENDED", "PROPOSAL", *KEPT[2:]]
    assert b.world.settings()["kernels.log_sig_depth"] == 3


def edit(b, key, value):
    """A person changes the file."""
    section, _, name = key.partition(".")
    text = b.world.file.read_text()
    b.world.file.write_text(f"{text}\n[{section}]\n{name} = {value}\n" if f"[{section}]" not in text else
                            text.replace(f"[{section}]\n", f"[{section}]\n{name} = {value}\n"))  # fmt: skip


async def test_an_edit_during_a_campaign_makes_it_pointless(tmp_path):
    b = await bench(tmp_path)
    b.gate.clear()
    b.tuner.ask(Trigger.OPERATOR)
    await b.until(Phase.CAMPAIGN)
    await b.turn(2)
    edit(b, OTHER_KEY, 0.2)
    await b.turn(3)
    assert b.tuner.phase is Phase.IDLE and b.metrics.campaigns == ["outdated"]
    assert b.world.settings()[OTHER_KEY] == 0.2


async def test_an_edit_that_is_not_in_force_yet_is_not_overtaken(tmp_path):
    b = await bench(tmp_path)
    b.tuner.ask(Trigger.OPERATOR)
    await b.until(Phase.DECIDED)
    b.follows = False
    edit(b, OTHER_KEY, 0.2)
    await b.turn(2)
    assert b.tuner.phase is Phase.IDLE and "MUTATION_APPLIED" not in b.world.events()
    b.tuner.ask(Trigger.OPERATOR)
    await b.turn(5)
    assert len(b.requests) == 1, "no campaign for settings that are being replaced"
    b.follows = True
    await b.turn(1)
    await b.until(Phase.CAMPAIGN)


async def test_an_edit_during_a_probation_ends_it_without_verdict(tmp_path):
    b = await bench(tmp_path, difference=0.0)
    b.tuner.ask(Trigger.OPERATOR)
    await b.until(Phase.PROBATION)
    await b.turn(1)
    edit(b, OTHER_KEY, 0.2)
    await b.turn(3)
    assert b.tuner.phase is Phase.IDLE
    assert b.world.events() == [*KEPT[:-1], "PROBATION_ENDED"]
    assert "without a verdict" in b.world.lines()[-1]["reason"]
    assert b.world.lines()[-1]["mutation"] == b.world.lines()[2]["mutation"]
    assert b.world.settings()[KEY] == 0.6 and b.world.settings()[OTHER_KEY] == 0.2
    assert b.metrics.mutations[-1] == "no_verdict"


async def test_a_rollback_by_hand_during_a_probation_is_the_last_word(tmp_path):
    b = await bench(tmp_path, difference=WORSE)
    b.tuner.ask(Trigger.OPERATOR)
    await b.until(Phase.PROBATION)
    b.world.mutator().rollback(reason="by hand")
    await b.turn(3)
    assert b.tuner.phase is Phase.IDLE and b.world.file.read_bytes() == b.world.first
    assert b.world.events().count("MUTATION_ROLLED_BACK") == 1 and b.world.events()[-1] == "PROBATION_ENDED"


async def test_limits_of_rate_are_waited_for(tmp_path):
    b = await bench(tmp_path, "[security]\nmin_ticks_between_mutations = 1000")
    b.world.mutator().apply({OTHER_KEY: 0.12}, trigger="somebody")
    b.read()
    b.ticks = 10
    b.new_tuner()
    await b.begin()
    b.tuner.ask(Trigger.OPERATOR)
    await b.until(Phase.DECIDED)
    await b.turn(5)
    assert b.tuner.phase is Phase.DECIDED and "MUTATION_REJECTED" not in b.world.events()
    b.ticks = 5_000
    await b.until(Phase.IDLE)
    assert b.world.events()[-3:] == KEPT[-3:]


async def test_what_the_policy_refuses_is_said_and_left(tmp_path):
    b = await bench(tmp_path, decision=Decision(apply={KEY: 0.99}, num_trials=8, best_value=0.5))
    await b.once_round()
    assert b.world.events() == ["CAMPAIGN_STARTED", "CAMPAIGN_ENDED", "MUTATION_REJECTED"]
    assert b.metrics.mutations == ["rejected"]


async def test_what_does_not_come_into_force_is_taken_back(tmp_path):
    b = await bench(tmp_path)
    b.tuner.ask(Trigger.OPERATOR)
    await b.until(Phase.DECIDED)
    b.follows = False  # the service refuses it
    await b.until(Phase.APPLIED)
    await b.turn(5)
    assert b.tuner.phase is Phase.APPLIED
    b.world.clocks.go_on(1000)
    await b.turn(2)
    assert b.tuner.phase is Phase.IDLE and b.world.file.read_bytes() == b.world.first
    assert "did not come into force" in b.world.lines()[-1]["reason"]


async def test_a_campaign_that_fails_is_said_and_waits_for_the_next_trigger(tmp_path):
    b = await bench(tmp_path, decision=CampaignFailedError("not enough recorded ticks"))
    await b.once_round()
    await b.turn(20)
    assert b.metrics.campaigns == ["failed"] and len(b.requests) == 1
    assert "not enough recorded ticks" in b.world.lines()[-1]["reason"]


async def test_a_probation_that_breaks_is_begun_again_with_its_evidence(tmp_path):
    b = await bench(tmp_path)
    b.tuner.ask(Trigger.OPERATOR)
    await b.until(Phase.PROBATION)
    made = b.probation

    async def broken(former, config_hash, test):
        running = await made(former, config_hash, test)

        async def run():
            running.test.update(["a"] * 40, [GOOD] * 40)
            raise RuntimeError("no room")

        running.run = run
        return running

    b.tuner._probation_fn = broken
    await b.turn(3)
    assert b.tuner.phase is Phase.PROBATION
    b.tuner._probation_fn = made
    await b.turn(70)
    assert b.world.events() == KEPT
    assert b.probations[1][1].test.summary().num_pairs >= 64


@pytest.mark.parametrize("error", [MutationFailedError("a full disk"), OSError("a full disk"), ConfigError("f", [])])
async def test_a_disk_that_refuses_is_waited_for(tmp_path, error):
    b = await bench(tmp_path)
    b.tuner.ask(Trigger.OPERATOR)
    write = b.tuner._file.write

    def refuse(state):
        raise error

    b.tuner._file.write = refuse
    await b.turn(5)
    assert b.tuner.phase is Phase.IDLE
    b.tuner._file.write = write
    await b.turn(1, seconds=100.0)
    assert b.tuner.phase is Phase.CAMPAIGN


async def test_a_damaged_state_is_put_aside(tmp_path):
    b = await bench(tmp_path)
    b.world.state.mkdir(parents=True, exist_ok=True)
    (b.world.state / "tuner.json").write_text("{")
    await b.kill()
    assert b.tuner.phase is Phase.IDLE and (b.world.state / "tuner.damaged").exists()


async def test_a_defect_of_the_loop_does_not_end_the_service(tmp_path, caplog):
    b = await bench(tmp_path)
    turns = 0

    async def defective():
        nonlocal turns
        turns += 1
        raise ZeroDivisionError

    b.tuner.turn = defective
    running = asyncio.create_task(b.tuner.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert turns == 1 and not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_state_that_cannot_be_read_does_not_end_the_service_either(tmp_path):
    b = await bench(tmp_path)
    b.new_tuner()
    reads = []

    def refuse():
        reads.append(True)
        raise PermissionError("tuner.json")

    b.tuner._file.read = refuse
    running = asyncio.create_task(b.tuner.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert reads and not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_file_that_is_not_in_force_is_left_alone(tmp_path, capsys):
    b = await bench(tmp_path)
    b.follows = False
    edit(b, OTHER_KEY, 0.2)  # refused, or superseded by another replica's change
    b.world.clocks.go_on(30 * 3600)
    await b.turn(200)
    assert b.tuner.phase is Phase.IDLE and not b.world.events()
    # where log lines go is left by whichever test set it last
    assert "".join(capsys.readouterr()).count("tuner_file_differs") == 1


async def test_an_entry_is_marked_in_the_history(tmp_path):
    b = await bench(tmp_path)
    await b.once_round()
    assert b.world.mutator().history.last_change().status is EntryStatus.KEPT
