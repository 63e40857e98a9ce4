"""Free ports that stay free while their owner is down."""

import random
import socket
from pathlib import Path

FIRST_PORT = 15_000


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on, below the range the kernel takes for outgoing connections.

    A port from that range (binding port 0 gives one) can go to a client's own connection while the broker is down: a
    client that keeps trying to reconnect on loopback even connects to itself, and the broker then cannot come back.
    """
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    if end <= FIRST_PORT:
        raise OSError(f"no port between {FIRST_PORT} and the first port for outgoing connections, {end}")
    generator = random.SystemRandom()
    for _ in range(200):
        port = generator.randrange(FIRST_PORT, end)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"200 ports between {FIRST_PORT} and {end} are all taken")
