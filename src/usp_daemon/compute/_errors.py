"""What can go wrong between the daemon and its device, one name per condition."""


class ComputeError(Exception):
    """Base of every error that this package raises on purpose."""


class DeviceUnavailableError(ComputeError):
    """The device that was asked for is not there; there is no silent fallback to another one."""


class StructuralChangeError(ComputeError):
    """New parameters differ in a field that fixes shapes or picks a program, so they need a new engine."""


class StateFormatError(ComputeError):
    """Imported states do not fit the program: a path, a shape or a dtype differs."""


class PartitionInUseError(ComputeError):
    """States were to be imported for a partition that already holds some."""


class CapacityError(ComputeError):
    """An import would exceed ``max_symbols``."""


class EngineFailedError(ComputeError):
    """A device call failed half-way, so the states on the device can no longer be trusted; restart from a snapshot."""


class WrongThreadError(ComputeError):
    """An engine was called from a thread that does not own it."""


class WorkerStoppedError(ComputeError):
    """The worker thread is not running: never started, closed, or dead (then the cause is attached)."""
