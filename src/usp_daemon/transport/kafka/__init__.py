"""The transport over Apache Kafka, and snapshots and epochs in a topic there. Only this package imports aiokafka."""

from ._epoch_topic import TopicEpochLog
from ._record_reader import MissingTopicsError, ReadRecord, RecordReader
from ._snapshot_topic import TopicSnapshotStore
from ._tick_producer import TickProducer
from ._transport import KafkaTransport

__all__ = [
    "KafkaTransport",
    "MissingTopicsError",
    "ReadRecord",
    "RecordReader",
    "TickProducer",
    "TopicEpochLog",
    "TopicSnapshotStore",
]
