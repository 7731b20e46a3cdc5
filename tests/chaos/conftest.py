"""Systems of real processes, on a real Valkey."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.chaos.system import System


@pytest.fixture
async def system(tmp_path: Path, redis_url: str, namespace: str) -> AsyncIterator[System]:
    """A system on the test run's Valkey: `system.configure(...)`, then `await system.start()`."""
    system = System(tmp_path, redis_url, namespace)
    yield system
    await system.clean_up()


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory with a short path."""
    directory = Path(tempfile.mkdtemp(prefix="fct-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
