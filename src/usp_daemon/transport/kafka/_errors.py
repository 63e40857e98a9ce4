"""aiokafka's errors as the interface has them, with a sentence on what to do."""

from collections.abc import Sequence

from aiokafka import errors as kafka_errors

from usp_daemon.config import Kafka
from usp_daemon.wire import MAX_NOTE_BYTES, TransportError

# Codes by which a broker says that a producer's epoch has passed; aiokafka does not know the second.
FENCED_CODES = frozenset({47, 90})  # INVALID_PRODUCER_EPOCH, PRODUCER_FENCED
FENCED_INSTANCE_CODE = 82

FENCED_ERRORS = (
    kafka_errors.ProducerFenced,
    kafka_errors.InvalidProducerEpoch,
    # A producer whose transaction the broker aborted, or whose numbers another producer has used.
    kafka_errors.InvalidTxnState,
    kafka_errors.OutOfOrderSequenceNumber,
)
# No record of the batch was taken, whatever its sequence number: too large, or a time the topic does not take.
REFUSED_ERRORS = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidTimestampError,
)


def cause_of(error: BaseException) -> BaseException:
    """The error underneath aiokafka's "unexpected error" of a background task."""
    while type(error) is kafka_errors.KafkaError and error.__cause__ is not None:
        error = error.__cause__
    return error


def permanent(error: BaseException, kafka: Kafka) -> TransportError | None:
    """What to tell the operator when ``error`` does not pass by itself; None when it may."""
    error = cause_of(error)
    if isinstance(error, kafka_errors.GroupAuthorizationFailedError):
        return TransportError(f"no right to use the consumer group {kafka.group!r}: allow READ on it to this client")
    if isinstance(error, kafka_errors.TransactionalIdAuthorizationFailed):
        return TransportError(
            f"no right to use transactional ids that begin with {kafka.group!r}: allow WRITE and DESCRIBE on them, or "
            'set delivery.guarantee = "at_least_once"'
        )
    if isinstance(error, kafka_errors.TopicAuthorizationFailedError):
        topics = error.args[0] if error.args else "a topic"
        names = sorted(topics) if isinstance(topics, set | frozenset | list | tuple) else [str(topics)]
        return TransportError(f"no right to use {', '.join(names)}: {_wanted(names, kafka)}")
    if isinstance(error, kafka_errors.ClusterAuthorizationFailedError):
        return TransportError("no right to produce idempotently: allow IDEMPOTENT_WRITE on the cluster")
    if isinstance(error, kafka_errors.OffsetMetadataTooLargeError):
        return TransportError(
            f"the broker takes no note of {MAX_NOTE_BYTES} bytes beside an offset: set its offset.metadata.max.bytes "
            "to 4096, the default, or more"
        )
    if isinstance(error, kafka_errors.UnsupportedCodecError):
        return TransportError(f'compression that this installation cannot handle ({error}): install "aiokafka[all]"')
    if isinstance(
        error, kafka_errors.IncompatibleBrokerVersion | kafka_errors.UnsupportedVersionError | NotImplementedError
    ):
        return TransportError(f"the broker is too old or too new for this client: {error}")
    if isinstance(
        error,
        kafka_errors.InvalidSessionTimeoutError | kafka_errors.InconsistentGroupProtocolError,
    ):
        return TransportError(
            f"the group {kafka.group!r} refuses this member ({type(error).__name__}): kafka.session_timeout_ms must "
            "lie within the broker's group.min/max.session.timeout.ms, and every member must divide partitions by range"
        )
    return None


def _wanted(topics: Sequence[str], kafka: Kafka) -> str:
    outputs = {kafka.predictions_topic, kafka.alarms_topic, kafka.dead_letters_topic}
    if outputs.issuperset(topics):
        return "allow WRITE and DESCRIBE on it to this client"
    if set(topics) == {kafka.input_topic}:
        return "allow READ and DESCRIBE on it to this client"
    return "allow READ on the input topic, WRITE on the outputs, and both on io.snapshot_topic"
