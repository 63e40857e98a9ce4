"""The rows beside the encoded records are those of the records, whatever was refused between them."""

import numpy as np
import orjson
import pytest

from fake_predictor import FakePredictor
from usp_daemon.service._results import encode_step
from usp_daemon.wire import RawBatch, ResultEncoder, TickDecoder


def batch_of(records, partition):
    return TickDecoder().decode(
        RawBatch(topic="t", partition=partition, source="t", offsets=range(len(records)), values=records)
    )


def ticks(symbols):
    return [b'{"symbol":"%s","ts":%d,"value":%d}' % (s.encode(), i + 1, 10 * i) for i, s in enumerate(symbols)]


@pytest.mark.parametrize("behaviour", [{}, {"max_symbols": 2}, {"poison": {10.0}}])
async def test_rows_are_those_of_the_predictions(behaviour):
    first, second = ticks("abcab"), ticks("cbba")
    second[1] = b"junk"
    batches = [batch_of(first, 0), batch_of(second, 1)]
    result = await FakePredictor(**behaviour).step(
        [symbol for batch in batches for symbol in batch.symbols],
        np.concatenate([batch.values for batch in batches]),
        np.concatenate([batch.timestamps_ns for batch in batches]),
        np.concatenate([batch.record_timestamps_ns for batch in batches]),
    )
    answers = encode_step(batches, result, ResultEncoder(config_hash="x"))
    published = 0
    for answer in answers:
        records = [orjson.loads(record) for record in answer.output.predictions.values]
        assert len(answer.rows) == len(records)
        assert list(answer.rows.symbols) == [record["symbol"] for record in records]
        assert answer.rows.timestamps_ns.tolist() == [record["ts"] for record in records]
        assert answer.rows.values.tolist() == [record["value"] for record in records]
        assert answer.rows.column("predicted_next").tolist() == [record["prediction"] for record in records]
        published += len(records)
    assert published > 0
    with pytest.raises(KeyError):
        answers[0].rows.column("no_such_quantity")


async def test_a_batch_without_ticks_has_no_rows():
    (answer,) = encode_step([batch_of([b"junk"], 0)], None, ResultEncoder(config_hash="x"))
    assert len(answer.rows) == 0
