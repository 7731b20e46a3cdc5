"""rediss:// URLs. Real: Valkey, and a proxy before it that speaks TLS with a certificate made for these tests."""

import asyncio
import ssl
from pathlib import Path

import pytest

from factorial.config import RedisConfig
from factorial.errors import MailboxUnavailableError
from factorial.mailbox.transport.connection import Connection
from tests.proxy import Proxy
from tests.support import wait_until
from tests.valkey import ValkeyServer

# Self-signed for localhost, valid for a hundred years; its key guards nothing:
# openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out certificate.pem
#   -days 36500 -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1
#   -addext keyUsage=critical,digitalSignature,keyCertSign
CERTIFICATE = Path(__file__).parent / "tls" / "certificate.pem"


@pytest.fixture
def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_name("key.pem"))
    return context


async def test_answers_small_and_large_and_a_lost_connection(own_valkey: ValkeyServer, tls: ssl.SSLContext) -> None:
    """4 MB come back as they went out, though they arrive in records of 16 KB; a cut connection is reopened."""
    own_valkey.start()
    async with Proxy(own_valkey.port, tls=tls) as proxy:
        connection = await Connection.open(RedisConfig(url=f"{proxy.url}?ssl_ca_certs={CERTIFICATE}"))
        value = bytes(range(256)) * 16_384
        stored, back, last = await asyncio.gather(
            connection.execute("SET", "k", value), connection.execute("GET", "k"), connection.execute("ECHO", "last")
        )
        assert (stored, last) == (b"OK", b"last")
        assert back == value
        proxy.cut()
        assert await connection.execute("STRLEN", "k") == len(value)
        await wait_until(lambda: connection.stats.reconnects == 1)
        await connection.close()


async def test_a_certificate_that_nobody_vouches_for(own_valkey: ValkeyServer, tls: ssl.SSLContext) -> None:
    """The message says what the check found."""
    own_valkey.start()
    async with Proxy(own_valkey.port, tls=tls) as proxy:
        with pytest.raises(MailboxUnavailableError, match="certificate verify failed"):
            await Connection.open(RedisConfig(url=proxy.url))
