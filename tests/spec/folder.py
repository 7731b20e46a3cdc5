"""Programs as their users would start them: copied into a folder of their own, with an environment of their own.

with started(folder, environment, "agent.py") as workers, started(folder, environment, *UVICORN) as web:
    await are_ready(workers)
    address = await address_of(web)
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.spec.provider import Provider
from tests.support import wait_until
from tests.valkey import ValkeyServer

__all__ = ["UVICORN", "address_of", "are_ready", "copied", "environment_of", "get", "started"]

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).with_name("dropin")
UVICORN = ("-m", "uvicorn", "server:app", "--port", "0", "--timeout-graceful-shutdown", "1")


def copied(program: str, folder: Path) -> Path:
    """The files of the program, in `folder`."""
    for file in (PROGRAMS / program).iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    return folder


def environment_of(valkey: ValkeyServer, provider: Provider) -> dict[str, str]:
    """What the programs find in their environment: where the servers are, and no key."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "PYTEST_"))}
    kept.pop("OPENAI_API_KEY", None)
    return kept | {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(valkey.port),
        "OPENAI_BASE_URL": provider.url,
    }


@contextmanager
def started(folder: Path, environment: dict[str, str], *arguments: str) -> Iterator[Path]:
    """`python ARGUMENTS` in `folder`; in the end, Ctrl-C has to stop it. Gives its log."""
    log = folder / f"log-{len(list(folder.glob('log-*')))}"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield log
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) in (0, -signal.SIGINT), log.read_text()
    finally:
        process.kill()
        process.wait(timeout=60)


async def are_ready(workers: Path) -> None:
    """Wait until a worker process is ready, by the log of `orchestrator.run()`."""
    await wait_until(lambda: "is ready" in workers.read_text(), 60, "a worker process is ready")


async def address_of(web: Path) -> str:
    """Wait until uvicorn is up, by its log, and give its host and port."""
    await wait_until(lambda: "Uvicorn running on http://" in web.read_text(), 60, "the web backend is up")
    found = re.search(r"running on http://(\S+)", web.read_text())
    assert found is not None
    return found[1]


async def get(address: str, path: str) -> Any:
    """What the server answers, as JSON."""

    def fetch() -> Any:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as response:
            return json.loads(response.read())

    return await asyncio.to_thread(fetch)
