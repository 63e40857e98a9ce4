"""Online probabilistic forecasts and regime alarms for streams of many symbols."""

__version__ = "0.1.0"
