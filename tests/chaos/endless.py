"""A test that starts one process of each kind and does not end. `test_ended_run.py` runs it and ends it by a signal.

ENDLESS_PIDS names the file into which it writes the ids of all these processes.
"""

import asyncio
import os
from pathlib import Path

import psutil

from factorial.mailbox.embedded.share import attach
from tests.chaos.system import System
from tests.valkey import ValkeyServer


async def test_it_does_not_end(own_valkey: ValkeyServer, own_system: System, short_directory: Path) -> None:
    own_valkey.start()
    embedded = await asyncio.to_thread(attach, short_directory)
    own_system.configure()
    await own_system.start()
    daemon = int((embedded.directory / "valkey.pid").read_text())
    started = [*psutil.Process().children(recursive=True), psutil.Process(daemon)]
    report = Path(os.environ["ENDLESS_PIDS"])
    report.with_suffix(".new").write_text(" ".join(str(process.pid) for process in started))
    report.with_suffix(".new").rename(report)
    await asyncio.Event().wait()
