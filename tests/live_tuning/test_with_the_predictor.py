"""A campaign over recorded ticks with the predictor itself, in its process, as the daemon starts it."""

import pytest
from test_campaign import record, request_for

from usp_daemon.live_tuning import CampaignProcess

pytestmark = pytest.mark.slow


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
