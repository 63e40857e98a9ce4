"""Are the forecasts of all symbols sound: scores, modes, incidents, and the spread of the predictor's quantities."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from ._parts import Query, above, bad_below, graph, single
from ._queries import chosen, quantile, rate, share, summed

_SCORED = summed(rate("usp_forecasts_scored_total"))
_PREDICTIONS = summed(rate("usp_predictions_by_mode_total"))
_SKILL = share(summed(rate("usp_forecast_scaled_error_total")), summed(rate("usp_no_change_scaled_error_total")))


def _covered(level: str) -> str:
    return share(summed(rate("usp_forecasts_covered_total", extra=f'level="{level}"')), _SCORED)


def _shares(metric: str, label: str) -> Query:
    return Query(f"{summed(rate(metric), label)} / scalar({_PREDICTIONS} > 0)", "{{" + label + "}}")


def _spread(title: str, description: str, metric: str, unit: str = "short") -> Builder[Panel]:
    queries = [Query(quantile(q, metric), f"p{100 * q:g}") for q in (0.1, 0.5, 0.9)]
    return graph(title, description + " Of all symbols.", unit, *queries, width=6, height=7)


def rows() -> dict[str, list[Builder[Panel]]]:
    """Panels by row."""
    return {
        "Quality": [
            single(
                "Error over no change",
                "Error over that of the forecast that nothing changes; below 1 is worth having.",
                "percentunit",
                Query(_SKILL),
                levels=above(1.0, 1.1),
            ),
            single(
                "In the 80 % interval",
                "Values that lay in the interval given for them; 80 % is right.",
                "percentunit",
                Query(_covered("80")),
                levels=bad_below(0.7),
            ),
            single(
                "In the 95 % interval",
                "Values that lay in the interval given for them; 95 % is right.",
                "percentunit",
                Query(_covered("95")),
                levels=bad_below(0.9),
            ),
            single("Scored", "Forecasts whose value came, warm-up left out.", "ops", Query(_SCORED)),
            single(
                "In grace",
                "Share of predictions in the grace period after an alarm.",
                "percentunit",
                Query(share(summed(rate("usp_predictions_in_grace_total")), _PREDICTIONS)),
            ),
            single(
                "Emergency",
                "Share of predictions with the circuit broken: all weight on the kernel for rough paths.",
                "percentunit",
                Query(share(summed(rate("usp_predictions_by_mode_total", extra='mode="Emergency"')), _PREDICTIONS)),
                levels=above(0.05, 0.2),
            ),
            graph(
                "Coverage",
                "Share of values within the intervals; lines should lie at 80 % and 95 %.",
                "percentunit",
                Query(_covered("80"), "80 %"),
                Query(_covered("95"), "95 %"),
                width=8,
                least=0,
                most=1,
            ),
            graph(
                "Error over that of no change",
                "Below 1 forecasting gains; above 1 it does harm.",
                "percentunit",
                Query(_SKILL, "ratio"),
                width=8,
                levels=above(1.0, 1.1),
                least=0,
            ),
            graph(
                "Error over its scale",
                "Absolute error of the forecasts over their scale; 1 is as expected.",
                "short",
                *(Query(quantile(q, "usp_forecast_error_ratio"), f"p{100 * q:g}") for q in (0.5, 0.9, 0.99)),
                width=8,
                least=0,
            ),
        ],
        "Modes and incidents": [
            graph(
                "Symbols by mode",
                "Symbols in each mode at the moment, of those that had a tick.",
                "short",
                Query(summed(chosen("usp_mode_symbols"), "mode"), "{{mode}}"),
                width=8,
                stacked=True,
                least=0,
            ),
            graph(
                "Symbols by tier, and in grace",
                "Symbols by architecture of the Deep Galerkin network, and those in the grace period after an alarm.",
                "short",
                Query(summed(chosen("usp_dgm_tier_symbols"), "tier"), "tier {{tier}}"),
                Query(summed(chosen("usp_grace_symbols")), "in grace"),
                width=8,
                least=0,
            ),
            graph(
                "Falls into degraded mode",
                "Symbols a second that fell into it, by what the gate found.",
                "ops",
                Query(summed(rate("usp_degraded_begun_total"), "reason"), "{{reason}}"),
                width=8,
                stacked=True,
                least=0,
            ),
            graph(
                "Modes",
                "Share of predictions; Robust holds the weights, Emergency has the circuit broken.",
                "percentunit",
                _shares("usp_predictions_by_mode_total", "mode"),
                width=8,
                stacked=True,
                least=0,
            ),
            graph(
                "Flags",
                "Share of predictions that carry a flag.",
                "percentunit",
                _shares("usp_predictions_flagged_total", "flag"),
                width=8,
                least=0,
            ),
            graph(
                "Numerical incidents",
                "Share of predictions in which a step dealt with one.",
                "percentunit",
                _shares("usp_numerical_incidents_total", "kind"),
                width=8,
                least=0,
            ),
            graph(
                "Passed with a reservation",
                "Share of ticks that the gate marked and let pass.",
                "percentunit",
                _shares("usp_ticks_marked_total", "reason"),
                width=8,
                least=0,
            ),
            graph(
                "Architecture of the Deep Galerkin network",
                "Share of predictions by tier, 0 the smallest.",
                "percentunit",
                _shares("usp_predictions_by_dgm_tier_total", "tier"),
                width=8,
                stacked=True,
                least=0,
            ),
            graph(
                "Scheme of the solver",
                "Share of predictions by scheme; stiff equations need the implicit one.",
                "percentunit",
                _shares("usp_predictions_by_solver_scheme_total", "scheme"),
                width=8,
                stacked=True,
                least=0,
            ),
        ],
        "Kernels and change detection": [
            graph(
                "Weight of the kernels, median",
                "One near 1 for good is a collapse.",
                "percentunit",
                Query(quantile(0.5, "usp_kernel_weight", "kernel"), "{{kernel}}"),
                width=8,
                least=0,
                most=1,
            ),
            graph(
                "Detector statistics, p90",
                "An alarm rings where one passes its threshold.",
                "short",
                Query(quantile(0.9, "usp_detector_statistic", "statistic"), "{{statistic}}"),
                width=8,
                least=0,
            ),
            graph(
                "Alarm threshold h_t",
                "Adaptive threshold of the level statistics.",
                "short",
                *(Query(quantile(q, "usp_alarm_threshold"), f"p{100 * q:g}") for q in (0.1, 0.5, 0.9)),
                width=8,
                least=0,
            ),
        ],
        "Spread of the predictor's quantities": [
            _spread("Epsilon", "Regularisation of the transport.", "usp_sinkhorn_epsilon"),
            _spread("Sinkhorn iterations", "Of one fusion.", "usp_sinkhorn_iterations"),
            _spread("Sinkhorn error", "Largest violation of a marginal.", "usp_sinkhorn_error"),
            _spread("Learning rate", "Adaptive rate of the fusion.", "usp_learning_rate"),
            _spread("Kurtosis", "Of the innovations; 3 is Gaussian.", "usp_kurtosis"),
            _spread("Stiffness", "Of the symbols' equations.", "usp_stiffness"),
            _spread("DGM entropy", "Entropy of the Deep Galerkin network's output.", "usp_dgm_entropy_nats"),
            _spread(
                "DGM entropy share", "Of its maximum; near 0 is a collapse.", "usp_dgm_entropy_ratio", "percentunit"
            ),
            _spread("Entropy ratio", "Entropy now over that of the last regime.", "usp_entropy_ratio"),
            _spread("Entropy window", "Adaptive window of the fusion, in ticks.", "usp_entropy_window_ticks"),
            _spread("Season", "Length in ticks; 0 where there is none.", "usp_season_length_ticks"),
            _below("Rough paths", "Hoelder exponent below its buckets' bounds.", "usp_holder_exponent"),
        ],
        "Quantities that may be negative": [
            _below("Free energy", "Free energy of the weights below its buckets' bounds.", "usp_free_energy", width=24),
        ],
    }


def _below(title: str, description: str, metric: str, *, width: int = 6) -> Builder[Panel]:
    """The share below each bound: quantiles interpolate from 0, which is wrong where values are negative."""
    bucket = f"{metric}_bucket"
    # A histogram with negative bounds is exposed without sum and count.
    whole = summed(rate(bucket, extra='le="+Inf"'))
    expression = f"{summed(rate(bucket), 'le')} / scalar({whole} > 0)"
    return graph(
        title, f"Share of all symbols' predictions: {description}", "percentunit", Query(expression, "below {{le}}"),
        width=width, height=7, least=0, most=1,
    )  # fmt: skip
