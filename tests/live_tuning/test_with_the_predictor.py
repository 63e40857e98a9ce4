"""The campaign in its process and the probation in the service, with the predictor itself."""

import functools

import pytest
from test_campaign import record, request_for
from tuned_service import Service

from usp_daemon.compute import StateKey, Worker, predictor_config
from usp_daemon.config import Settings
from usp_daemon.daemon_app import make_epoch
from usp_daemon.live_tuning import SHADOW_TOPIC, CampaignProcess, Decision, Phase, Trigger
from usp_daemon.service import Observer

pytestmark = pytest.mark.slow


@pytest.mark.long
async def test_a_real_campaign_comes_to_a_decision(tmp_path):
    record(tmp_path / "ticks", count=700)
    request = request_for(
        tmp_path,
        meta_optimization={
            "checkpoint_path": str(tmp_path / "campaigns"), "n_trials": 3, "n_startup_trials": 2, "batch_size": 3,
            "n_folds": 1, "train_ratio": 0.5, "max_structures": 1,
        },
    )  # fmt: skip
    progress = []
    process = CampaignProcess(cpu_share=8.0, max_lag_s=5.0, lag_fn=lambda: 0.0)
    decision = await process.run(request, progress.append)
    assert decision.num_trials == 3 and progress[-1].num_trials == 3
    # The first trial is what is in force: it scores 1 by definition, and the best is no worse.
    assert decision.best_value <= 1.0 + 1e-9
    assert (tmp_path / "campaigns" / "live-test-1.journal").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    "changes", [{"orchestration.volatility_alpha": 0.12}, {"kernels.log_sig_depth": 2}], ids=["traced", "structural"]
)
async def test_a_real_probation_comes_to_a_verdict(tmp_path, changes):
    async def campaign(request, progress_fn):
        return Decision(apply=changes, num_trials=1, best_value=0.9)

    service = Service(tmp_path, campaign, drift_ratio=9.0, num_symbols=20)
    worker = Worker(predictor_config(Settings()), max_symbols=100)
    await worker.start()
    try:
        make_fn = functools.partial(make_epoch, worker, Observer())
        await service.start(worker, make_fn=make_fn, key_fn=StateKey)
        await service.run_until(lambda: service.tuning.recorder.num_ticks > 4_000, timeout_s=200.0)
        service.tuning.ask(Trigger.OPERATOR)
        # Slowly while the structure is compiled: the broker keeps everything in memory.
        await service.run_until(lambda: service.tuning.tuner.phase is Phase.PROBATION, timeout_s=400.0, pause_s=0.5)
        await service.run_until(lambda: service.tuning.tuner.phase is Phase.IDLE, timeout_s=400.0)
        last = service.world.lines()[-1]
        await service.stop()
        assert await worker.release(SHADOW_TOPIC, 0) == 0, "states of the shadow are left"
    finally:
        await worker.close()
    assert last["event"] in ("MUTATION_KEPT", "MUTATION_ROLLED_BACK")
    report = last["evidence"]["probation"]
    assert report["num_symbols"] == 2 and report["num_scored"] >= 64 and report["num_shed"] == 0
    assert report["new"]["num_not_finite"] == report["old"]["num_not_finite"] == 0
    # Random walks: neither forecast can be far from the usual score.
    for side in ("new", "old"):
        assert 0.5 < report[side]["mean_score"] < 2.0, report
