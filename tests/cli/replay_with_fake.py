"""The command line with the fake predictor in place of the worker; the first argument, JSON, says how that behaves."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fake_predictor
from usp_daemon import app, cli

original = app.replay
predictor_factory = fake_predictor.factory(**json.loads(sys.argv[1]))


async def replay(options, out, err):
    return await original(options, out, err, predictor_factory=predictor_factory)


app.replay = replay
sys.argv = ["usp-daemon", *sys.argv[2:]]
cli.main()
