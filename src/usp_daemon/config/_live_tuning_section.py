"""[tuning]: how the daemon retunes itself while it runs."""

import dataclasses
from typing import Annotated

from ._key import Reader, locked

_TUNER = Reader.TUNER
_MODES = ("off", "propose", "autonomous")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """When the running daemon tunes itself, on what it has recorded, and what a change must stand before it stays."""

    mode: Annotated[
        str,
        locked(
            "What becomes of better traced parameters: off looks for none, propose reports them and changes nothing, "
            "autonomous applies them, on probation.",
            reader=_TUNER,
            choices=_MODES,
        ),
    ] = "autonomous"
    structural_mode: Annotated[
        str,
        locked(
            "The same for structural parameters; what mode does not do is not done for these either.",
            reader=_TUNER,
            choices=_MODES,
        ),
    ] = "propose"

    # the recorder
    record_ticks: Annotated[
        int,
        locked("Accepted ticks of each recorded symbol that are kept.", "ticks", 100, 1_000_000, reader=_TUNER),
    ] = 5_000
    record_symbols: Annotated[
        int,
        locked(
            "Symbols that are recorded; of more, always the same ones are chosen, by a hash of the name.",
            "symbols",
            1,
            10_000,
            reader=_TUNER,
        ),
    ] = 64
    record_path: Annotated[
        str, locked("Directory of the recorded ticks, one for each process.", "path", reader=_TUNER)
    ] = "io/ticks"

    # when
    schedule_hours: Annotated[
        float,
        locked(
            "Time from one campaign to the next; 0 leaves only drift and the operator.", "h", 0.0, 8760.0, reader=_TUNER
        ),
    ] = 24.0
    drift_ratio: Annotated[
        float,
        locked(
            "How many times its long-run value the recent score relative to the forecast of no change must reach to "
            "start a campaign.",
            "",
            1.0,
            100.0,
            above_low=True,
            reader=_TUNER,
        ),
    ] = 1.2

    # at what cost
    cpu_share: Annotated[
        float,
        locked("Share of one core that a campaign may take.", "cores", 0.0, 64.0, above_low=True, reader=_TUNER),
    ] = 0.25
    nice: Annotated[
        int, locked("Niceness of the tuner's process: 19 yields to everything.", "", 10, 19, reader=_TUNER)
    ] = 19
    max_lag_s: Annotated[
        float,
        locked("Lag of the feed above which a campaign pauses.", "s", 0.0, 86_400.0, above_low=True, reader=_TUNER),
    ] = 5.0

    # probation
    probation_settle_s: Annotated[
        float,
        locked(
            "Time that new parameters are in force before the shadow begins, in which symbols show themselves.",
            "s",
            0.0,
            3600.0,
            reader=_TUNER,
        ),
    ] = 30.0
    probation_share: Annotated[
        float,
        locked(
            "Share of the symbols that a shadow goes on predicting under the previous parameters; at least one symbol.",
            "",
            0.0,
            0.1,
            above_low=True,
            reader=_TUNER,
        ),
    ] = 0.1
    probation_max_symbols: Annotated[
        int, locked("Most symbols of the shadow.", "symbols", 1, 10_000, reader=_TUNER)
    ] = 64
    probation_min_ticks: Annotated[
        int,
        locked(
            "Ticks of a symbol, on average over the shadow, before new parameters are kept; worse ones may go earlier.",
            "ticks",
            1,
            1_000_000,
            reader=_TUNER,
        ),
    ] = 500
    probation_max_ticks: Annotated[
        int,
        locked(
            "Ticks of a symbol, on average over the shadow, after which the mean difference decides.",
            "ticks",
            1,
            10_000_000,
            reader=_TUNER,
        ),
    ] = 5_000
    probation_margin: Annotated[
        float,
        locked(
            "Loss of score, relative to the previous parameters, that must be ruled out before new ones are kept.",
            "",
            0.001,
            0.3,
            reader=_TUNER,
        ),
    ] = 0.05
    probation_error_rate: Annotated[
        float,
        locked(
            "Probability of rolling back what is no worse, and of keeping what is worse by probation_margin.",
            "",
            1e-6,
            0.5,
            reader=_TUNER,
        ),
    ] = 0.05
