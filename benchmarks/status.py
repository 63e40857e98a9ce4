"""What the status page's board costs: CPU time a tick to take answers in, and the time of one document.

``python -m benchmarks.status`` tells a board of answers as fast as it goes, nothing else runs. "watched" is the share
of ticks whose symbol has a place on the board: they are written to rings, the others only looked up.
"""

import argparse
import dataclasses
import time
from collections import Counter

import numpy as np

from usp_daemon.core import PredictionResult
from usp_daemon.service import Answer, AnswerRows
from usp_daemon.status import Board, Facts, Health, Service, build_status, encode_status
from usp_daemon.wire import TopicPartition

from ._table import Row, format_rows

_WIDE = {"quantiles": 39, "kernel_predictions": 4, "kernel_confidences": 4, "weights": 4}
_FACTS = Facts(
    service=Service(kind="run", instance="", group="", version="", versions={}),
    health=Health(live=True, ready=True, reasons=[]),
)


def made_answers(num_symbols: int, batch: int, count: int) -> list[Answer]:
    """``count`` answers of ``batch`` ticks each, with an alarm in a thousand."""
    rng = np.random.default_rng(0)
    names = [f"symbol-{index}" for index in range(num_symbols)]
    answers = []
    for index in range(count):
        columns = {
            field.name: np.zeros((batch, _WIDE[field.name]) if field.name in _WIDE else batch)
            for field in dataclasses.fields(PredictionResult)
        }
        columns["alarm_kind"] = (rng.random(batch) < 1e-3).astype(np.int32)
        columns["sequence"] = np.full(batch, index)
        symbols = [names[each] for each in rng.integers(0, num_symbols, batch)]
        stamps, values = np.full(batch, index, np.int64), rng.normal(size=batch)
        kinds = columns["alarm_kind"][columns["alarm_kind"] != 0].tolist()
        rows = AnswerRows(symbols, stamps, values, columns, 0)
        none_refused = np.zeros(batch, np.int64)
        answers.append(Answer(None, None, Counter(), kinds, none_refused, rows))  # type: ignore[arg-type]
    return answers


def cost_of(num_symbols: int, batch: int, num_ticks: int) -> tuple[float, float, float, int]:
    """Seconds a tick, seconds the event loop is held for one document, seconds of the rest of it, and its bytes."""
    board, partition = Board(200), TopicPartition("ticks", 0)
    board.partition_state(partition, "RUNNING")
    answers = made_answers(num_symbols, batch, min(num_ticks // batch, 64))
    rounds = max(num_ticks // (batch * len(answers)), 1)
    begun = time.process_time()
    for _ in range(rounds):
        for answer in answers:
            board.answered(partition, [answer])
    used = (time.process_time() - begun) / (rounds * batch * len(answers))
    begun = time.perf_counter()
    view = board.view()
    viewed = time.perf_counter() - begun
    begun = time.perf_counter()
    body = encode_status(build_status(view, _FACTS))
    return used, viewed, time.perf_counter() - begun, len(body)


def main() -> None:
    """Prints the table."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.status", description="cost of the status page")
    arguments.add_argument("--ticks", type=int, default=400_000, help="ticks for each row (default: 400000)")
    num_ticks = arguments.parse_args().ticks
    rows = []
    for num_symbols, batch in ((100, 4000), (100, 500), (100, 64), (10_000, 4000), (10_000, 500), (10_000, 64)):
        used, viewed, built, size = cost_of(num_symbols, batch, num_ticks)
        note = f"a document: {viewed * 1e3:.1f} ms on the loop, {built * 1e3:.0f} ms beside it, {size / 1e3:.0f} kB"
        name = f"{num_symbols:,} symbols, batches of {batch}"
        rows.append(Row(name=name, figure_to_reach="< 0.5", measured=used * 1e6, unit="us a tick", note=note))
    print(f"the board's cost\n\n{format_rows(rows)}")


if __name__ == "__main__":
    main()
