"""Two requests of Kafka's protocol, enough to see that a broker serves. The protocol guide gives the layouts."""

import socket
import struct

METADATA, API_VERSIONS = 3, 18


def answers(port: int, timeout_s: float = 1.0) -> bool:
    """Whether the listener without TLS on ``port`` of 127.0.0.1 answers an ApiVersions request without an error."""
    try:
        body = _request(port, API_VERSIONS, 0, b"", timeout_s)
    except OSError:
        return False
    return len(body) >= 2 and struct.unpack_from(">h", body)[0] == 0


def brokers(port: int, timeout_s: float = 1.0) -> dict[int, tuple[str, int]]:
    """The cluster as a plaintext listener tells it: node id to advertised host and port; empty if none answers."""
    try:
        # version 1, an empty list of topics
        body = _request(port, METADATA, 1, struct.pack(">i", 0), timeout_s)
    except OSError:
        return {}
    (count,) = struct.unpack_from(">i", body)
    found, at = {}, 4
    for _ in range(count):
        node, length = struct.unpack_from(">ih", body, at)
        at += 6
        host = body[at : at + length].decode("utf-8")
        at += length
        broker_port, rack = struct.unpack_from(">ih", body, at)
        at += 6 + max(rack, 0)
        found[node] = (host, broker_port)
    return found


def _request(port: int, api: int, version: int, payload: bytes, timeout_s: float) -> bytes:
    """The response's body after its correlation id."""
    correlation = 7
    client = b"probe"
    message = struct.pack(">hhih", api, version, correlation, len(client)) + client + payload
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        connection.sendall(struct.pack(">i", len(message)) + message)
        (length,) = struct.unpack(">i", _exactly(connection, 4))
        response = _exactly(connection, length)
    (echoed,) = struct.unpack_from(">i", response)
    if echoed != correlation:
        raise ConnectionError(f"port {port} answered correlation id {echoed}, not {correlation}: not a Kafka broker")
    return response[4:]


def _exactly(connection: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = connection.recv(length - len(parts))
        if not part:
            raise ConnectionError(f"closed after {len(parts)} of {length} bytes")
        parts += part
    return bytes(parts)
