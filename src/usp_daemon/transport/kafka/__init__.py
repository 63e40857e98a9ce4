"""The transport over Apache Kafka. Only this package imports the client, aiokafka."""

from ._transport import KafkaTransport

__all__ = ["KafkaTransport"]
