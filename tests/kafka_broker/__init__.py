"""A real Apache Kafka broker for tests and development: its jars, its processes, its faults.

Standard library only, so that it runs before the project's environment exists. The fixtures, which need pytest, are in
``kafka_broker.fixtures``.
"""

from kafka_broker._broker import Broker, BrokerFailed
from kafka_broker._jars import VERSIONS, BrokerUnavailable, fetch
from kafka_broker._ports import free_port
from kafka_broker._proxy import Fault, Proxy
from kafka_broker._security import Credentials, User, unsecured_token

__all__ = [
    "VERSIONS",
    "Broker",
    "BrokerFailed",
    "BrokerUnavailable",
    "Credentials",
    "Fault",
    "Proxy",
    "User",
    "fetch",
    "free_port",
    "unsecured_token",
]
