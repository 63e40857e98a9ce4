"""Where a partition stands, as metrics and health endpoints name it."""

import enum


class PartitionState(enum.StrEnum):
    """The life of a partition in one replica.

    ASSIGNED -> RESTORING -> REPLAYING -> RUNNING -> REVOKING, or LOST from anywhere (taken away unasked), or FAILED
    from anywhere (stopped until somebody acts).
    """

    ASSIGNED = "ASSIGNED"
    RESTORING = "RESTORING"
    REPLAYING = "REPLAYING"
    RUNNING = "RUNNING"
    REVOKING = "REVOKING"
    LOST = "LOST"
    FAILED = "FAILED"
