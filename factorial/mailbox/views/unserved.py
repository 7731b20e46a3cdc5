"""Agents that have queued tasks, and no process. Called by `status`; changes nothing."""

from factorial.mailbox.script import Scripts

__all__ = ["read_unserved"]

_PIECE = 10_000


async def read_unserved(scripts: Scripts) -> set[str]:
    """The names of these agents. A queue exists while it has a task. It is found by going through the server's keys."""
    queued: set[str] = set()
    cursor = b"0"
    while True:
        cursor, found = await scripts.commands.execute(
            "SCAN", cursor, "MATCH", scripts.keys.key("ready", "*"), "COUNT", _PIECE
        )
        queued.update(scripts.keys.parse(key.decode(errors="replace"))[1] for key in found)
        if int(cursor) == 0:
            return queued - await _served(scripts) if queued else queued


async def _served(scripts: Scripts) -> set[str]:
    processes = await scripts.commands.execute("ZRANGE", scripts.keys.key("processes"), 0, -1)
    served = set()
    for process in processes:
        agent = await scripts.commands.execute("HGET", scripts.keys.key("claims", process.decode()), "agent")
        served.add(agent.decode() if agent else "")
    return served
