"""What the tuner is at, and which configuration is in force."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from ._parts import BAD, GOOD, MUTED, PLAIN, WARNING, Query, above, bad_below, graph, single, timeline
from ._queries import chosen, increase, rate, share, summed

_STATES = {
    "off": MUTED,
    "idle": GOOD,
    "campaign": PLAIN,
    "decided": WARNING,
    "applied": WARNING,
    "probation": "purple",
}


def _in_state(state: str) -> str:
    matcher = f'state="{state}"'
    return f"max by (instance) ({chosen('usp_tuner_state', extra=matcher)})"


_STATE = " + ".join(f"{number} * {_in_state(state)}" for number, state in enumerate(_STATES, start=1))


def rows() -> dict[str, list[Builder[Panel]]]:
    """Panels by row."""
    return {
        "Configuration": [
            single(
                "Epoch",
                "Number of the configuration epoch that new records are answered under.",
                "short",
                Query(f"max({chosen('usp_config_epoch')})"),
                width=6,
            ),
            single(
                "Replicas agree",
                "1 if all replicas answer under the same epoch. A change takes them less than a second each.",
                "short",
                Query(f"min({chosen('usp_config_epoch')}) == bool max({chosen('usp_config_epoch')})"),
                width=6,
                levels=bad_below(1),
                names={"1": ("yes", GOOD), "0": ("no", BAD)},
            ),
            single(
                "Last change",
                "Whether the configuration file as it is now is in force on every replica.",
                "short",
                Query(f"min({chosen('usp_config_last_reload_success')})"),
                width=6,
                levels=bad_below(1),
                names={"1": ("in force", GOOD), "0": ("refused or failed", BAD)},
            ),
            single(
                "Hash",
                "Hash of the settings that records are answered under; every record carries it too.",
                "short",
                Query(f"count by (predictor_hash) ({chosen('usp_config_info')})", "{{predictor_hash}}"),
                width=6,
                as_text=True,
            ),
            graph(
                "Epoch of each replica",
                "Lines that stay apart: a replica cannot build the newest epoch (epoch_refused in its log).",
                "short",
                Query(chosen("usp_config_epoch"), "{{instance}}"),
                width=8,
                steps=True,
            ),
            graph(
                "Changes by outcome",
                "A refused one changes nothing; a failed one was right and could not be put in force.",
                "short",
                Query(summed(increase("usp_config_reloads_total"), "outcome"), "{{outcome}}"),
                width=8,
                least=0,
            ),
            graph(
                "Time to take a change up",
                "From the change being seen to its being in force; compiling a new structure takes longest.",
                "s",
                Query(chosen("usp_config_last_reload_duration_seconds"), "{{instance}}"),
                width=8,
                least=0,
            ),
        ],
        "Tuner": [
            timeline(
                "What the tuner is at",
                "By replica; only the one that answers partition 0 searches.",
                Query(_STATE, "{{instance}}"),
                names={str(number): (state, _STATES[state]) for number, state in enumerate(_STATES, start=1)},
                height=6,
            ),
            graph(
                "Drift",
                "Recent score over the long-run one; above 1 is worse. At tuning.drift_ratio a campaign begins.",
                "short",
                Query(chosen("usp_tuner_drift_ratio"), "{{instance}}"),
                levels=above(1.3),
            ),
            graph(
                "Probation",
                "Score of the new settings over that of the former ones on the same ticks; below 1 is better.",
                "short",
                Query(chosen("usp_tuner_probation_ratio"), "{{instance}}"),
                levels=above(1.0),
            ),
            graph(
                "Best of the campaign",
                "Best score so far over that of the settings in force; below 1 is better.",
                "short",
                Query(chosen("usp_tuner_best_ratio"), "{{instance}}"),
                width=8,
            ),
            graph(
                "Trials",
                "Settings that campaigns evaluated.",
                "ops",
                Query(summed(rate("usp_tuner_trials_total"), "instance"), "{{instance}}"),
                width=8,
                least=0,
            ),
            graph(
                "Ticks not seen",
                "Share of ticks that recorder and drift missed because they were behind; predictions do not suffer.",
                "percentunit",
                Query(
                    share(
                        summed(rate("usp_tuner_dropped_ticks_total")), summed(rate("usp_predictions_published_total"))
                    ),
                    "missed",
                ),
                width=8,
                levels=above(0.1),
                least=0,
            ),
            graph(
                "Campaigns by outcome",
                "In each point of the graph. nothing: what is in force stands.",
                "short",
                Query(summed(increase("usp_tuner_campaigns_total"), "outcome"), "{{outcome}}"),
                least=0,
            ),
            graph(
                "The tuner's changes by outcome",
                "What became of the changes that the tuner wanted; rolled_back beside kept: raise tuning.min_gain.",
                "short",
                Query(summed(increase("usp_tuner_mutations_total"), "outcome"), "{{outcome}}"),
                least=0,
            ),
        ],
    }
