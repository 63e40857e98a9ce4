"""The form of a tick as the settings have it."""

from usp_daemon.config import Settings
from usp_daemon.wire import TickFormat, TimeUnit


def tick_format_of(settings: Settings) -> TickFormat:
    """How the settings say a tick is written."""
    wire = settings.wire
    return TickFormat(
        symbol_field=wire.symbol_field,
        time_field=wire.time_field,
        value_field=wire.value_field,
        time_unit=TimeUnit(wire.time_unit),
        key_is_symbol=wire.key_is_symbol,
        max_record_bytes=wire.max_record_bytes,
        max_symbol_length=wire.max_symbol_length,
    )
