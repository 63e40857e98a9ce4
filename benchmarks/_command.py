"""What the accuracy, alarm and robustness commands share: arguments, the parameters under test, running an engine."""

import argparse
import ast
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from usp_daemon import core

from . import _engines
from ._suite import Run, Series, load_series

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax"


def keep_compiled_programs() -> None:
    """Compiled programs are kept between runs; most settings change no program."""
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def parser(module: str, what: str) -> argparse.ArgumentParser:
    """The common arguments of a suite benchmark."""
    arguments = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=what)
    arguments.add_argument("part", type=Path, metavar="PATH_TO_SUITE_PART", help="directory with index.json")
    arguments.add_argument(
        "--out", type=Path, help="keep the files for the scorer here (default: a temporary directory)"
    )
    arguments.add_argument("--limit", type=int, help="only the first so many series")
    arguments.add_argument("--only", default="", help="only series whose name contains one of these, comma-separated")
    arguments.add_argument("--engine", choices=("scan", "live", "naive"), default="scan")
    arguments.add_argument("--precision", choices=("float64", "float32"), default="float64")
    arguments.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of PredictorConfig, repeatable"
    )
    arguments.add_argument(
        "--alarm-mean-ticks",
        type=float,
        default=None,
        help="ticks between false alarms that the thresholds are resolved for (default: PredictorConfig as it stands)",
    )
    arguments.add_argument("--quiet", action="store_true", help="no progress on standard error")
    return arguments


def config_from(options: argparse.Namespace) -> core.PredictorConfig:
    """The parameters under test: defaults, thresholds for the asked rate, then the explicit fields."""
    config = core.PredictorConfig()
    fields = {field.name for field in dataclasses.fields(config)}
    changes: dict[str, Any] = {}
    for setting in options.set:
        name, _, text = setting.partition("=")
        if name not in fields or not text:
            raise SystemExit(f"--set {setting}: expected FIELD=VALUE with a field of PredictorConfig")
        try:
            changes[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            changes[name] = text
    config = dataclasses.replace(config, **changes)
    if options.alarm_mean_ticks is not None:
        thresholds = core.resolve_thresholds(
            cusum_k=float(config.cusum_k),
            mean_ticks_between_false=options.alarm_mean_ticks,
            reference_fit_ticks=float(config.reference_fit_ticks),
        )
        config = dataclasses.replace(config, **{**thresholds, **changes})
    return config


def run_tracks(options: argparse.Namespace, tracks: tuple[str, ...]) -> tuple[list[Series], list[Run], Path]:
    """Load the series, run them, and name the directory for the scorer's files (it exists)."""
    keep_compiled_programs()
    only = [text for text in options.only.split(",") if text]
    series = load_series(options.part, tracks, only=only, limit=options.limit)
    engine = getattr(_engines, options.engine)
    runs = engine(series, config_from(options), dtype=jnp.dtype(options.precision), progress=not options.quiet)
    directory = options.out or Path(tempfile.mkdtemp(prefix="usp-benchmark-"))
    directory.mkdir(parents=True, exist_ok=True)
    return series, runs, directory
