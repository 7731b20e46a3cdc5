"""Systems of real processes, on a real Valkey."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests import harness
from tests.chaos.system import System
from tests.valkey import ValkeyServer


@pytest.fixture
async def system(tmp_path: Path, redis_url: str, namespace: str) -> AsyncIterator[System]:
    """A system on the test run's Valkey: `system.configure(...)`, then `await system.start()`."""
    system = System(tmp_path, redis_url, namespace)
    yield system
    await system.clean_up()


@pytest.fixture
async def own_system(tmp_path: Path, own_valkey: ValkeyServer, namespace: str) -> AsyncIterator[System]:
    """A system on a Valkey of the test's own: `own_valkey.start(...)` comes first."""
    system = System(tmp_path, own_valkey.url, namespace)
    yield system
    await system.clean_up()


@pytest.fixture
async def local(redis_url: str, namespace: str) -> AsyncIterator[harness.System]:
    """A system within the test's own process. Asserts the invariants at the end."""
    system = harness.System(redis_url, namespace)
    try:
        yield system
    finally:
        await system.close()


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory with a short path."""
    directory = Path(tempfile.mkdtemp(prefix="fct-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
