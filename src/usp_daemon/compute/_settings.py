"""From settings to the predictor's parameters."""

from typing import Any, Protocol

from usp_daemon.core import PredictorConfig, resolve_thresholds


class PredictorSettings(Protocol):
    """The part of the settings that is needed here."""

    def predictor_fields(self) -> dict[str, Any]:
        """Keyword arguments of ``PredictorConfig``; ``cusum_h`` may be the word ``"auto"``."""
        ...

    def __getitem__(self, path: str) -> Any:
        """One value by its dotted path."""
        ...


def predictor_config(settings: PredictorSettings) -> PredictorConfig:
    """The predictor's parameters, with the detection thresholds that the asked rate of false alarms implies.

    An explicit ``cusum_h`` stands, and the other statistics' thresholds follow it.
    """
    fields = dict(settings.predictor_fields())
    asked = fields.pop("cusum_h", "auto")
    thresholds = resolve_thresholds(
        cusum_k=float(fields.get("cusum_k", PredictorConfig.cusum_k)),
        mean_ticks_between_false=float(settings["orchestration.alarm_mean_ticks_between_false"]),
        reference_fit_ticks=float(fields.get("reference_fit_ticks", PredictorConfig.reference_fit_ticks)),
        cusum_h=None if asked == "auto" else float(asked),
    )
    return PredictorConfig(**{**fields, **thresholds})
