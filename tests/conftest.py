"""How every test runs: 64-bit, no silent promotion of types or ranks, shapes checked, the same each time."""

import os
import sys
from pathlib import Path

# Two workers share two cores: one thread each for XLA and BLAS. Both must be set before JAX is imported.
# The instruction set is the one that usp_daemon.compute asks for, which may be imported too late here.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false --xla_cpu_max_isa=AVX")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What a test compiles stays in the checkout, also where it asks for the daemon's own cache.
os.environ["USP_CACHE_DIR"] = str(Path(__file__).resolve().parent.parent / ".cache" / "usp-daemon")

import hypothesis
import jax
import jaxtyping
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Helpers of several folders stand beside this file; a broker's fixtures are for all of them.
sys.path.insert(0, str(ROOT / "tests"))
pytest_plugins = ["kafka_broker.fixtures"]

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiled programs are kept between runs; what is cheap to compile is not worth a file.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

# Must stand before the first import of usp_daemon.core, hence here: annotated shapes and types become checks.
jaxtyping.install_import_hook("usp_daemon.core", "beartype.beartype")

hypothesis.settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """The top of the checkout."""
    return ROOT


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ``USP_*`` override of the developer's shell reaches a test."""
    for name in tuple(os.environ):
        if name.startswith("USP_") and name != "USP_CACHE_DIR" and not name.startswith("USP_REQUIRE_"):
            monkeypatch.delenv(name)
