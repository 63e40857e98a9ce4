"""The whole loop with real parts: drift is answered; what was better on history and is worse live goes back."""

import asyncio

import numpy as np
import pytest
from tuned_service import KEY, SCORES, Service, expected_score

from usp_daemon.config import step_toward
from usp_daemon.live_tuning import SHADOW_TOPIC, CampaignProgress, Decision, Phase, Trigger
from usp_daemon.persistence import read_ticks
from usp_daemon.tuning import crps


def best_of_recorded(request, last=60):
    """What a campaign does, in small: the value of the key that scores best on the newest recorded ticks."""
    settings = request.settings()

    def score(cusum_k):
        scores = []
        for ticks in read_ticks(request.ticks).values():
            values = ticks.values[-last:]
            scores.append(np.mean(crps(values[1:], values[:-1, None] + 2.0 * cusum_k * SCORES)))
        return float(np.mean(scores))

    wanted = min(np.arange(0.1, 1.01, 0.05), key=score)
    apply = step_toward(settings, {KEY: float(wanted)}, max_relative=settings.security.max_relative_change)
    value = score(apply[KEY]) / score(settings[KEY])
    return Decision(apply=apply if value < 0.99 else {}, num_trials=19, best_value=value, evidence={"value": value})


async def test_drift_is_answered_by_better_settings_without_anybody(tmp_path):
    requests = []

    async def campaign(request, progress_fn):
        requests.append(request)
        await asyncio.sleep(1.2)  # the recorder writes once a second
        decision = best_of_recorded(request)
        progress_fn(CampaignProgress(num_trials=19, num_total=19, best_value=decision.best_value))
        return decision

    service = Service(tmp_path, campaign)
    await service.start()
    await service.run_until(lambda: service.tuning.recorder.num_ticks > 6_000)
    assert service.tuning.tuner.phase is Phase.IDLE and not service.world.events()
    service.feed.step = 8.0
    await service.run_until(lambda: service.count("MUTATION_KEPT") == 1 and service.tuning.tuner.phase is Phase.IDLE)
    symbols = {key[0] for key in service.predictor.seen}
    await service.stop()

    assert service.world.settings()[KEY] == pytest.approx(0.75)  # as far as one change may go
    assert expected_score(0.75, 8.0) < expected_score(0.5, 8.0)
    assert service.epochs.current.settings[KEY] == service.world.settings()[KEY]
    assert service.world.events() == [
        "CAMPAIGN_STARTED", "CAMPAIGN_ENDED", "MUTATION_APPLIED", "PROBATION_STARTED", "MUTATION_KEPT",
    ]  # fmt: skip
    assert service.world.is_whole() is True
    lines = service.world.lines()
    assert lines[0]["reason"].endswith("by drift")
    kept = lines[-1]
    assert kept["mutation"] == lines[2]["mutation"] and kept["delta"] == {KEY: [0.5, pytest.approx(0.75)]}
    report = kept["evidence"]["probation"]
    assert report["num_symbols"] == 2  # a tenth of 20
    measured = report["new"]["mean_score"] / report["old"]["mean_score"]
    assert measured == pytest.approx(expected_score(0.75, 8.0) / expected_score(0.5, 8.0), abs=0.03)
    assert symbols == {"ticks"}, "states of the shadow are left"
    assert SHADOW_TOPIC not in symbols
    assert len(requests) == 1


async def test_what_is_worse_live_is_rolled_back_and_not_tried_again(tmp_path):
    async def campaign(request, progress_fn):
        await asyncio.sleep(1.2)
        decision = best_of_recorded(request)
        service.feed.step = 0.2  # what comes is not what was recorded
        return decision

    service = Service(tmp_path, campaign, seed=1, drift_ratio=9.0)
    await service.start()
    service.feed.step = 4.0
    await service.run_until(lambda: service.tuning.recorder.num_ticks > 3_000)
    service.tuning.ask(Trigger.OPERATOR)
    await service.run_until(
        lambda: service.count("MUTATION_ROLLED_BACK") == 1 and service.epochs.current.settings[KEY] == 0.5
    )
    assert service.world.file.read_bytes() == service.world.first
    rolled_back = service.world.lines()[-1]
    assert rolled_back["delta"] == {KEY: [pytest.approx(0.75), 0.5]} and rolled_back["trigger"] == "tuner probation"
    report = rolled_back["evidence"]["probation"]
    assert report["new"]["mean_score"] > report["old"]["mean_score"]

    # The same conditions again, and the same proposal.
    service.feed.step = 4.0
    done = service.tuning.recorder.num_ticks
    await service.run_until(lambda: service.tuning.recorder.num_ticks > done + 3_000)
    service.tuning.ask(Trigger.OPERATOR)
    await service.run_until(lambda: service.count("MUTATION_REJECTED") == 1)
    await service.stop()
    assert "not rolled back lately" in str(service.world.lines()[-1]["reason"])
    assert service.world.settings()[KEY] == 0.5
    assert service.world.events() == [
        "CAMPAIGN_STARTED", "CAMPAIGN_ENDED", "MUTATION_APPLIED", "PROBATION_STARTED", "MUTATION_ROLLED_BACK",
        "CAMPAIGN_STARTED", "CAMPAIGN_ENDED", "MUTATION_REJECTED",
    ]  # fmt: skip
    assert service.world.is_whole() is True
