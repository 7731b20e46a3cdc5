"""What the tests with a real Valkey share."""

from collections.abc import AsyncIterator

import pytest

from factorial.config import RedisConfig
from factorial.mailbox import Namespace
from tests.redis.doctor import assert_invariants


@pytest.fixture
async def mailbox(redis_url: str, namespace: str) -> AsyncIterator[Namespace]:
    """A namespace in which nothing moves but the test's own calls. Asserts the invariants at the end."""
    mailbox = await Namespace.open(RedisConfig(url=redis_url, namespace=namespace))
    try:
        yield mailbox
        await assert_invariants(mailbox.connection, namespace, quiet=True, end_events=False)
    finally:
        await mailbox.close()
