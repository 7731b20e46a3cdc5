"""The two servers on which random histories are played, and how time passes on them.

    FakeServer    fakeredis in this process. Its clock is ours, and stands still until a test moves it.
    RealServer    a Valkey. Its clock is the machine's: instead of waiting, a test moves every moment that is stored

Both answer one command at a time, as the raw protocol has it: bytes, integers, lists, None.
"""

import hashlib
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import fakeredis
import redis
from fakeredis.model import ExpiringMembersSet, Hash, XStream, ZSet
from redis.exceptions import NoScriptError

from tests.valkey import ValkeyServer

__all__ = ["Contents", "FakeServer", "RealServer", "Server", "virtual_time"]

Contents = dict[str, dict[str, Any]]
FAKEREDIS_TELLS_TIME_IN = ("_helpers", "_socket._base", "model._stream", "commands_mixins.server_mixin")
"""The modules of fakeredis 2.40 that call `time.time()`: for `TIME`, for what expires, and for a stream's ids."""


class _Clock:
    """Stands in for the module `time` within fakeredis."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


_BEGINNING = 1_800_000_000.0
_clock = _Clock(_BEGINNING)


@contextmanager
def virtual_time() -> Iterator[None]:
    """Within the block, fakeredis lives in a time of its own: see `FakeServer.pass_time`."""
    modules = [sys.modules[f"fakeredis.{name}"] for name in FAKEREDIS_TELLS_TIME_IN]
    for module in modules:
        patch.object(module, "time", _clock).start()
    try:
        yield
    finally:
        patch.stopall()


class Server:
    """What both have in common. It serves as the `Commands` of a `Scripts`, and answers at once."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def answer(self, *args: Any) -> Any:
        """The answer to one command. Raises what redis-py raises for an error."""
        self._connection.send_command(*args)
        return self._connection.read_response()

    async def execute(self, *args: Any) -> Any:
        """The same for a coroutine."""
        return self.answer(*args)

    def contents(self, prefix: str) -> Contents:
        """Everything that is stored under `prefix`: {kind of key: {name: value}}, as text, without times to live.

        What `tests.redis.stored.contents` gives; it is read after each step, so this has to be quick.
        """
        found: Contents = defaultdict(dict)
        for key, value in self._values(prefix):
            kind, _, name = key.decode().removeprefix(prefix).partition(":")
            found[kind][name] = value
        return found

    def _values(self, prefix: str) -> Iterable[tuple[bytes, Any]]:
        raise NotImplementedError

    def empty(self) -> None:
        """Forget everything but the scripts."""
        self.answer("FLUSHALL")

    def close(self) -> None:
        """Hang up."""
        self._connection.disconnect()


class FakeServer(Server):
    """Fakeredis. It does not know the flags of scripts, so their first line is removed."""

    def __init__(self) -> None:
        self._server = fakeredis.FakeServer()
        self._redis = fakeredis.FakeRedis(server=self._server, protocol=2)
        super().__init__(self._redis.connection_pool.get_connection())
        self._texts: dict[str, str] = {}

    def answer(self, *args: Any) -> Any:
        """The answer to one command."""
        name, *rest = args
        if name == "EVAL" and rest[0].startswith("#!lua"):
            digest = hashlib.sha1(rest[0].encode(), usedforsecurity=False).hexdigest()
            self._texts[digest] = rest[0].partition("\n")[2]
            return super().answer("EVAL", self._texts[digest], *rest[1:])
        if name == "EVALSHA":
            if rest[0] not in self._texts:
                raise NoScriptError
            return super().answer("EVAL", self._texts[rest[0]], *rest[1:])
        return super().answer(*args)

    def _values(self, prefix: str) -> Iterable[tuple[bytes, Any]]:
        self.answer("PING")  # so that the database knows what time it is
        database = self._server.dbs[0]
        for key in list(database):
            match database[key].value:
                case bytes() as text:
                    yield key, text
                case list() as items:
                    yield key, [item.decode() for item in items]
                case Hash() as fields:
                    yield key, {name.decode(): value.decode() for name, value in fields.getall().items()}
                case ExpiringMembersSet() as members:
                    yield key, {member.decode() for member in members}
                case ZSet() as members:
                    yield key, {member.decode(): f"{score:.0f}" for member, score in members.items()}
                case XStream() as stream:
                    yield key, list(stream)

    def pass_time(self, seconds: float, prefix: str) -> None:
        """Move the clock."""
        _clock.now += seconds

    def empty(self) -> None:
        """Forget everything but the scripts, and that time has passed."""
        super().empty()
        _clock.now = _BEGINNING

    def close(self) -> None:
        """Hang up, and end the server."""
        super().close()
        self._redis.close()


_MOVE = """
local prefix, ms, cursor = KEYS[1], tonumber(ARGV[1]), '0'
repeat
  local found = redis.call('SCAN', cursor, 'MATCH', prefix .. '*', 'COUNT', 1000)
  cursor = found[1]
  for _, key in ipairs(found[2]) do
    local kind = string.match(string.sub(key, #prefix + 1), '^[^:]+')
    if kind == 'due' or kind == 'ended' or kind == 'throttled' or kind == 'processes' then
      local members = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
      for i = 1, #members, 2 do
        if kind ~= 'processes' or members[i + 1] ~= '0' then
          redis.call('ZINCRBY', key, -ms, members[i])
        end
      end
    elseif kind == 'awaits' then
      local awaited = redis.call('HGETALL', key)
      for i = 1, #awaited, 2 do
        local deadline = string.match(awaited[i + 1], '^%?(%d+)$')
        if deadline and deadline ~= '0' then
          redis.call('HSET', key, awaited[i], '?' .. string.format('%.0f', deadline - ms))
        end
      end
    elseif kind == 'lease' or kind == 'published' then
      redis.call('PEXPIRE', key, redis.call('PTTL', key) - ms)
    end
  end
until cursor == '0'
"""


_READ = """
local found, cursor = {}, '0'
repeat
  local answer = redis.call('SCAN', cursor, 'MATCH', KEYS[1] .. '*', 'COUNT', 1000)
  cursor = answer[1]
  for _, key in ipairs(answer[2]) do
    local kind, value = redis.call('TYPE', key)['ok'], nil
    if kind == 'string' then value = redis.call('GET', key)
    elseif kind == 'list' then value = redis.call('LRANGE', key, 0, -1)
    elseif kind == 'set' then value = redis.call('SMEMBERS', key)
    elseif kind == 'hash' then value = redis.call('HGETALL', key)
    elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    else value = redis.call('XRANGE', key, '-', '+') end
    found[#found + 1] = {key, kind, value}
  end
until cursor == '0'
return found
"""


class RealServer(Server):
    """A Valkey of our own."""

    def __init__(self, server: ValkeyServer) -> None:
        super().__init__(redis.Connection(host="127.0.0.1", port=server.port, protocol=2))  # type: ignore[no-untyped-call]

    def _values(self, prefix: str) -> Iterable[tuple[bytes, Any]]:
        for key, kind, value in self.answer("EVAL", _READ, 1, prefix):
            if kind == b"list":
                yield key, [item.decode() for item in value]
            elif kind == b"set":
                yield key, {item.decode() for item in value}
            elif kind in (b"hash", b"zset"):
                items = iter(item.decode() for item in value)
                yield key, dict(zip(items, items, strict=True))
            else:
                yield key, value

    def pass_time(self, seconds: float, prefix: str) -> None:
        """Move all times that are stored under `prefix`: leases, due times, deadlines, ends."""
        self.answer("EVAL", _MOVE, 1, prefix, round(seconds * 1000))
