"""The transport over Apache Kafka, and snapshots in a topic there. Only this package imports the client, aiokafka."""

from ._record_reader import ReadRecord, RecordReader
from ._snapshot_topic import TopicSnapshotStore
from ._tick_producer import TickProducer
from ._transport import KafkaTransport

__all__ = ["KafkaTransport", "ReadRecord", "RecordReader", "TickProducer", "TopicSnapshotStore"]
