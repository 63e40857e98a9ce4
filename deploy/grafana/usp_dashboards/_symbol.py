"""One symbol: what it was forecast, and why."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from ._parts import BAD, GOOD, WARNING, Query, graph, single
from ._queries import SYMBOL, chosen

_MODES = {"0": ("Standard", GOOD), "1": ("Robust", WARNING), "2": ("Emergency", BAD)}


def _one(metric: str, legend: str = "{{symbol}}", extra: str = "", *, by: str = "") -> Query:
    # Two replicas have a symbol for a moment while its partition moves.
    return Query(f"max by (symbol{', ' + by if by else ''}) ({chosen(metric, SYMBOL, extra)})", legend)


def _end(level: str, end: str) -> Query:
    return _one("usp_symbol_interval", f"{level} % {end}", f'level="{level}",end="{end}"')


def _small(title: str, description: str, metric: str) -> Builder[Panel]:
    return graph(title, description, "short", _one(metric), width=6, height=7)


def rows() -> dict[str, list[Builder[Panel]]]:
    """Panels by row."""
    return {
        "Forecast": [
            single(
                "Mode",
                "Standard; Robust holds the weights; Emergency has the circuit broken.",
                "short",
                _one("usp_symbol_mode"),
                names=_MODES,
            ),
            single("Ticks", "Accepted so far.", "short", _one("usp_symbol_sequence")),
            single("Alarms", "Since the symbol got series of its own.", "short", _one("usp_symbol_alarms_total")),
            single("Grace", "Ticks of grace left after an alarm.", "short", _one("usp_symbol_grace_ticks")),
            single("Scale", "Robust standard deviation of the forecast's error.", "short", _one("usp_symbol_scale")),
            single(
                "Season", "Length in ticks; 0 where there is none.", "short", _one("usp_symbol_season_length_ticks")
            ),
            graph(
                "Value, forecast and intervals",
                "The last value, the forecast of the next one and its intervals, as they stood when scraped.",
                "short",
                _one("usp_symbol_value", "value"),
                _one("usp_symbol_prediction", "forecast"),
                _end("95", "lower"),
                _end("80", "lower"),
                _end("80", "upper"),
                _end("95", "upper"),
                width=24,
                height=11,
                bands=(("95 % upper", "95 % lower"), ("80 % upper", "80 % lower")),
            ),
        ],
        "Regime": [
            graph(
                "Detector and threshold",
                "Level statistics ring above h_t; those of scale have thresholds of their own.",
                "short",
                _one("usp_symbol_detector_statistic", "{{statistic}}", by="statistic"),
                _one("usp_symbol_alarm_threshold", "h_t"),
                least=0,
            ),
            graph(
                "Weight of the kernels",
                "What each expert counts for; together 1.",
                "percentunit",
                _one("usp_symbol_kernel_weight", "{{kernel}}", by="kernel"),
                stacked=True,
                least=0,
                most=1,
            ),
        ],
        "Quantities": [
            _small("Epsilon", "Regularisation of the transport.", "usp_symbol_sinkhorn_epsilon"),
            _small("Free energy", "Free energy of the weights.", "usp_symbol_free_energy"),
            _small("Kurtosis", "Of the innovations; 3 is Gaussian.", "usp_symbol_kurtosis"),
            _small("Hoelder exponent", "Of the path; low is rough.", "usp_symbol_holder_exponent"),
            _small("DGM entropy", "Of the Deep Galerkin network's output.", "usp_symbol_dgm_entropy_nats"),
            _small("Stiffness", "Of the symbol's equation.", "usp_symbol_stiffness"),
        ],
    }
