"""Systems of real processes, on a real Valkey."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests import harness
from tests.chaos.system import System, SystemAt
from tests.valkey import ValkeyServer


@pytest.fixture
async def system_at(tmp_path: Path, namespace: str) -> AsyncIterator[SystemAt]:
    """Makes a system on the server of a URL: `system.configure(...)`, then `await system.start()`. Each but the first
    has a folder of its own in that of the test."""
    made: list[System] = []

    def at(url: str) -> System:
        directory = tmp_path / f"system-{len(made)}" if made else tmp_path
        directory.mkdir(exist_ok=True)
        made.append(System(directory, url, namespace))
        return made[-1]

    yield at
    for system in made:
        await system.clean_up()


@pytest.fixture
def system(redis_url: str, system_at: SystemAt) -> System:
    """A system on the test run's Valkey."""
    return system_at(redis_url)


@pytest.fixture
def own_system(own_valkey: ValkeyServer, system_at: SystemAt) -> System:
    """A system on a Valkey of the test's own: `own_valkey.start(...)` comes first."""
    return system_at(own_valkey.url)


@pytest.fixture
async def local(redis_url: str, namespace: str) -> AsyncIterator[harness.System]:
    """A system within the test's own process. Asserts the invariants at the end."""
    async with harness.System(redis_url, namespace) as system:
        yield system


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory with a short path."""
    directory = Path(tempfile.mkdtemp(prefix="fct-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
