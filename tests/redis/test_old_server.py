"""A server that is too old is named in one line by every command. Real: commands, Valkey. Played: the version that it
tells, by a proxy in front of it."""

import asyncio
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.proxy import Between
from tests.valkey import ValkeyServer

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = """
[redis]
url = "{url}"
[[runner]]
agent = "examples.weather:weather_agent"
"""
COMMANDS = {
    "run": ["-m", "factorial.supervisor", "{config}"],
    "status": ["-m", "factorial.supervisor", "status", "--config", "{config}"],
    "drain": ["-m", "factorial.supervisor", "drain", "weather.1", "--config", "{config}"],
    "stop": ["-m", "factorial.supervisor", "stop", "--config", "{config}"],
    "doctor": ["-m", "factorial", "doctor", "--config", "{config}"],
}


class Aged(Between):
    """Passes everything on, and makes the server one of version 6."""

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.server_port)
        self.begin(self._pass_on(reader, server_writer))
        self.begin(self._pass_on(server_reader, writer))

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with closing(sink):
            while data := await source.read(1 << 20):
                sink.write(data.replace(b"redis_version:7", b"redis_version:6"))


@pytest.mark.parametrize("command", COMMANDS)
async def test_an_old_server_is_named_in_one_line(command: str, own_valkey: ValkeyServer, tmp_path: Path) -> None:
    own_valkey.start()
    config = tmp_path / "system.toml"
    async with Aged(own_valkey.port) as aged:
        config.write_text(SYSTEM.format(url=aged.url))
        process = await asyncio.create_subprocess_exec(
            sys.executable, *(part.format(config=config) for part in COMMANDS[command]),
            cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 30)
    [line] = err.decode().splitlines()
    assert "is Redis 6" in line and "Factorial needs Redis 7.0 or newer, or Valkey" in line
    assert not out and process.returncode
