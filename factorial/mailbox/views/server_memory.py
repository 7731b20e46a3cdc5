"""How full the server is. Called by `status`; changes nothing."""

from dataclasses import dataclass

from redis.exceptions import ResponseError

from factorial.errors import MailboxRefusedError
from factorial.mailbox.script import Scripts

__all__ = ["Memory", "read_memory"]

_NEARLY_FULL = 0.9


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of the server that holds the namespace, in bytes."""

    used: int
    limit: int
    """Its `maxmemory`; 0: there is none."""

    @property
    def warning(self) -> str:
        """What an operator should do; empty if there is room."""
        if not self.limit or self.used < _NEARLY_FULL * self.limit:
            return ""
        figures = f"{self.used / 2**20:.1f} of {self.limit / 2**20:.1f} MiB"
        if self.used < self.limit:
            state = f"is nearly full ({figures}): when it is full, it accepts no new task"
        else:
            state = f"is full ({figures}): it accepts no new task"
        return f"{state}. Raise its limit (CONFIG SET maxmemory), or shorten the times to live of ended tasks"


async def read_memory(scripts: Scripts) -> Memory:
    """The server's memory. Without a limit if the server does not tell."""
    try:
        info = await scripts.commands.execute("INFO", "memory")
    except (ResponseError, MailboxRefusedError):
        return Memory(0, 0)
    pairs = dict(line.partition(":")[::2] for line in info.decode(errors="replace").splitlines())
    return Memory(int(pairs.get("used_memory", 0)), int(pairs.get("maxmemory", 0)))
