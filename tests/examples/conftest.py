"""A folder with the files that the documents ask their reader to create, and systems in it."""

import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tests.examples.documents import FILES, start
from tests.support import wait_until

System = Callable[..., AbstractAsyncContextManager[Path]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with all of the files. It is not pytest's own, because the path of a Unix socket must be short."""
    directory = Path(tempfile.mkdtemp(prefix="fct-readme-"))
    try:
        for name, text in FILES.items():
            (directory / name).write_text(text, encoding="utf-8")
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def system(folder: Path) -> System:
    """Starts a system in the folder with `python ARGUMENTS`, and yields its log. Ctrl-C has to stop it."""

    @asynccontextmanager
    async def started(*arguments: str) -> AsyncIterator[Path]:
        log = folder / "log"
        process = start(folder, *arguments, output=log)
        try:
            await wait_until(lambda: "children are ready" in log.read_text(), timeout=30, message="all processes")
            yield log
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()

    return started
