"""Answers made of plain numbers, a clock, and a server that a synchronous client can ask."""

import asyncio
import contextlib
import dataclasses
import threading
from collections import Counter

import numpy as np

from fake_predictor import COUNTS, FLAGS, WIDE
from usp_daemon.core import PredictionResult
from usp_daemon.service import Answer, AnswerRows
from usp_daemon.telemetry import HttpServer


@dataclasses.dataclass
class Clock:
    """Unix seconds that the test moves."""

    now: float = 1_700_000_000.0

    def __call__(self):
        return self.now


def answer(symbols, timestamps_ns, values, *, reasons=(), **columns):
    """An answer as the service gives it; columns that are not named hold zeros."""
    n = len(symbols)
    full = {}
    for field in dataclasses.fields(PredictionResult):
        name = field.name
        kind = bool if name in FLAGS else np.int32 if name in COUNTS else np.float64
        full[name] = np.zeros((n, WIDE[name]) if name in WIDE else n, kind)
    full["weights"][:] = 0.25
    full["accepted"][:] = True
    for name, column in columns.items():
        full[name] = np.asarray(column, full[name].dtype)
    kinds = full["alarm_kind"]
    refused = np.where(full["accepted"], 0, full["gate_reasons"]).astype(np.int64)
    rows = AnswerRows(list(symbols), np.asarray(timestamps_ns, np.int64), np.asarray(values, np.float64), full, 0)
    return Answer(None, None, Counter(reasons), kinds[kinds != 0].tolist(), refused, rows)


class ServerThread:
    """An HTTP server on a loop of its own, so that a synchronous browser can ask it; can be stopped and started."""

    def __init__(self, routes, port=0):
        self.routes, self.port = routes, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = None

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def start(self):
        self._server = HttpServer(host="127.0.0.1", port=self.port, routes=self.routes)
        self.call(self._server.open())
        self.port = self._server.port

    def stop(self):
        self.call(self._server.close())

    def run(self, fn):
        """Call ``fn`` on the loop's thread, where the board belongs."""

        async def call():
            fn()

        self.call(call())

    def close(self):
        with contextlib.suppress(Exception):
            self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()
