"""Array aliases and the enumerations that the whole core shares.

Timestamps are int64 nanoseconds even when the arithmetic is float32, so 64-bit types are switched on here, once, before
any array exists.
"""

import enum

import jax
from jaxtyping import Array, Bool, Float, Int

jax.config.update("jax_enable_x64", True)

Scalar = Float[Array, ""]
Flag = Bool[Array, ""]
Count = Int[Array, ""]
Weights = Float[Array, " kernels"]
CostMatrix = Float[Array, "kernels kernels"]

NUM_KERNELS = 4


class KernelType(enum.IntEnum):
    """The position of each expert in every vector of weights."""

    RKHS = 0
    DEEP_GALERKIN = 1
    LEVY_SDE = 2
    SIGNATURE = 3
    N_KERNELS = 4


KERNEL_NAMES: tuple[str, ...] = ("rkhs", "deep_galerkin", "levy_sde", "signature")


class OperatingMode(enum.IntEnum):
    """What the predictor is doing: ordinary, degraded (weights held) or emergency (circuit broken)."""

    STANDARD = 0
    ROBUST = 1
    EMERGENCY = 2

    @property
    def label(self) -> str:
        """The mode's name in the specification and on the wire."""
        return ("Standard", "Robust", "Emergency")[int(self)]


class GateReason(enum.IntFlag):
    """Why the ingestion gate refused or flagged a tick; one bit each, so that reasons add up.

    Bits below ``STALE`` refuse the tick, the others let it pass and mark the symbol as degraded.
    """

    NONE = 0
    NOT_FINITE = 1
    FUTURE = 2
    TOO_OLD = 4
    DUPLICATE = 8
    OUT_OF_ORDER = 16
    OUTLIER = 32
    FROZEN = 64
    STALE = 128
    SPARSE = 256
    REBASED = 512


REJECTING_REASONS = (
    GateReason.NOT_FINITE
    | GateReason.FUTURE
    | GateReason.TOO_OLD
    | GateReason.DUPLICATE
    | GateReason.OUT_OF_ORDER
    | GateReason.OUTLIER
    | GateReason.FROZEN
)


class AlarmKind(enum.IntFlag):
    """What changed, one bit each: several statistics may cross their thresholds on one tick."""

    NONE = 0
    LEVEL_UP = 1
    LEVEL_DOWN = 2
    SCALE_UP = 4
    SCALE_DOWN = 8
    DYNAMICS = 16
    JUMP = 32


class ResultCode(enum.IntFlag):
    """Numerical incidents of one step, as data: traced code neither raises nor emits a NaN."""

    SUCCESS = 0
    KERNEL_A_NON_FINITE = 1
    KERNEL_B_NON_FINITE = 2
    KERNEL_C_NON_FINITE = 4
    KERNEL_D_NON_FINITE = 8
    SINKHORN_NOT_CONVERGED = 16
    SINKHORN_LOG_DOMAIN = 32
    WEIGHTS_RESET = 64
    LEARNER_RESET = 128
    WARMING_UP = 256
