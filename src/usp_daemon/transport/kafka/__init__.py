"""The transport over Apache Kafka, and snapshots in a topic there. Only this package imports the client, aiokafka."""

from ._snapshot_topic import TopicSnapshotStore
from ._transport import KafkaTransport

__all__ = ["KafkaTransport", "TopicSnapshotStore"]
