"""The ways to the server, in one place: what the other modules of the mailbox import.

    Connection           all ordinary commands of a process           connection.py
    BlockingConnection   waiting for work                             blocking.py
    Listener             pub/sub                                      listener.py
    check_server         whether the server can be trusted            server.py
    check_layout         whether we read what the namespace holds     server.py

All three connections are opened by `endpoint.py`, and read and write through a `Link` (link.py).
"""

from factorial._core.redact import shown_url
from factorial.mailbox.transport.blocking import BlockingConnection
from factorial.mailbox.transport.connection import Connection, ConnectionStats
from factorial.mailbox.transport.listener import Listener
from factorial.mailbox.transport.server import Commands, check_layout, check_server, read_layout

__all__ = [
    "BlockingConnection",
    "Commands",
    "Connection",
    "ConnectionStats",
    "Listener",
    "check_layout",
    "check_server",
    "read_layout",
    "shown_url",
]
