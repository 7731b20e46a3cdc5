"""The transports: one for each protocol that model servers speak. Importing this package registers them."""

from factorial.models.model import register_transport
from factorial.models.transports.sdk import OpenAITransport, close_clients

__all__ = ["close_clients"]

register_transport("chat", OpenAITransport())
