"""Ticks as a producer writes them: the opposite of :class:`TickDecoder`, for feeds that are made up or replayed."""

import datetime
import math

import orjson

from ._decode import TickFormat
from ._time import TimeUnit

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class TickEncoder:
    """Writes ticks as JSON in one :class:`TickFormat`.

    Times are written to the nanosecond whatever the unit, as decimal fractions where they need to be. Where the key
    names the symbol the object does not repeat it.
    """

    def __init__(self, tick_format: TickFormat) -> None:
        self._format = tick_format
        self._time_name = orjson.dumps(tick_format.time_field)
        self._value_name = orjson.dumps(tick_format.value_field)
        self._symbols: dict[str, tuple[bytes, bytes]] = {}

    def encode(self, symbol: str, time_ns: int, value: float) -> tuple[bytes, bytes]:
        """Key and value of the record; ``time_ns`` is not negative, a ``value`` that is not finite becomes null."""
        known = self._symbols.get(symbol)
        if known is None:
            name = b"" if self._format.key_is_symbol else orjson.dumps({self._format.symbol_field: symbol})[1:-1] + b","
            known = self._symbols[symbol] = (symbol.encode("utf-8"), b"{" + name + self._time_name + b":")
        key, beginning = known
        time = _written(time_ns, self._format.time_unit)
        number = repr(value) if math.isfinite(value) else "null"
        return key, b"%b%b,%b:%b}" % (beginning, time.encode(), self._value_name, number.encode())


def _written(time_ns: int, unit: TimeUnit) -> str:
    if unit is TimeUnit.ISO8601:
        seconds, rest = divmod(time_ns, 1_000_000_000)
        moment = _EPOCH + datetime.timedelta(seconds=seconds)
        return f'"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"'
    if not unit.digits:
        return str(time_ns)
    whole, rest = divmod(time_ns, 10**unit.digits)
    fraction = f"{rest:0{unit.digits}d}".rstrip("0")
    return f"{whole}.{fraction}" if fraction else str(whole)
