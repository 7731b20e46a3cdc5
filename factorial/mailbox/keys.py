"""Every key's name, in one place: for Python as functions of `Keys`, for Lua as the prelude of every script.

All keys carry the hash tag `{namespace:partition}`, so that on Redis Cluster a run, its owner's events and
its queue share a slot and one script may change them together.
"""

import re

__all__ = ["Keys"]

_BY_ID = {
    "run": "r",  # HASH    status, token, counters
    "conversation": "l",  # LIST    messages, append-only
    "fields": "x",  # HASH    the context's other fields
    "journal": "j",  # HASH    what finished within the current turn
    "mail": "m",  # LIST    steering that was not read yet
    "seen": "d",  # SET     ids of mail that was accepted
    "awaited": "w",  # HASH    what a parked run waits for, and what has come of it
    "children": "f",  # SET     the runs that it has spawned and that have not ended
    "batch": "b",  # HASH    per batch: how many children it has, how many have ended, and whose it is
    "ready": "q",  # LIST    per agent: runs to take up
    "suspects": "u",  # LIST    per agent: runs to take up one by one, since their processes crashed
    "throttled": "L",  # ZSET    per agent and owner: ready runs beyond the limit, by when they were made
    "running": "O",  # HASH    per agent: how many runs of each owner are held
    "passed": "v",  # SET     per agent: processes that cannot take those, and have passed the wake token on
    "due": "z",  # ZSET    per agent: runs in backoff, and parked ones with a deadline, by when they are due
    "parked": "W",  # SET     per agent: runs that wait for results or children
    "wake": "k",  # LIST    per agent: one token if something is ready
    "ended": "t",  # ZSET    per agent and status: runs that ended, by when
    "lease": "p",  # STRING  per process: lives as long as its heartbeat
    "held": "h",  # SET     per process: runs it holds
    "signals": "s",  # LIST    per process: what it has to hear at once
    "claims": "y",  # HASH    per process: each worker's latest claim, its suspect, and what its burial needs
    "bucket": "B",  # HASH    per span of time and agent: what was counted
    "events": "e",  # STREAM  per owner: durable events
    "published": "n",  # STRING  per message id: an event that was published on its own, a moment ago
    "owner": "o",  # HASH    per owner: how many runs are active, and since which event
    "channel": "c",  # pub/sub channel per owner
    "orders": "g",  # LIST    per supervisor: orders it has not taken up yet
    "order": "i",  # STRING  per order: it was sent, a moment ago
    "answer": "a",  # LIST    per order: what became of it
}
_SINGLE = {
    "processes": "P",  # ZSET    processes that have registered, by since when the lease is missing (0: it is not)
    "doomed": "F",  # LIST    runs to cancel, because those that spawned them were cancelled
    "supervisors": "S",  # ZSET    supervisors, by when they were last heard of
    "reports": "R",  # HASH    per supervisor: how its tree is
    "timeline": "T",  # ZSET    the names of these buckets, by when they go
    "layout": "V",  # HASH    version of this layout
}

_KINDS = {short + ":": kind for kind, short in _BY_ID.items()} | {short: kind for kind, short in _SINGLE.items()}

LAYOUT_VERSION = 1


class Keys:
    """The key names of one namespace."""

    def __init__(self, namespace: str, partition: int = 0) -> None:
        self.prefix = f"{{{namespace}:{partition}}}:"

    def _of(self, kind: str, name: str) -> str:
        return f"{self.prefix}{_BY_ID[kind]}:{name}"

    def key(self, kind: str, name: str = "") -> str:
        """The key of any kind: 'run' and an id, 'ready' and an agent's name, 'processes', ..."""
        return self.prefix + _SINGLE[kind] if kind in _SINGLE else self._of(kind, name)

    def parse(self, key: str) -> tuple[str, str]:
        """What a stored key is: its kind and its name. Both are empty if it is none of ours."""
        short, colon, name = key.removeprefix(self.prefix).partition(":")
        return _KINDS.get(short + colon, ""), name

    def run(self, task_id: str) -> str:
        """HASH: status, token and counters of a run."""
        return self._of("run", task_id)

    def conversation(self, task_id: str) -> str:
        """LIST: a run's messages."""
        return self._of("conversation", task_id)

    def awaited(self, task_id: str) -> str:
        """HASH: what a parked run waits for, and what has come of it."""
        return self._of("awaited", task_id)

    def batch(self, batch_id: str) -> str:
        """HASH: how many children a batch has, and how many of them have ended."""
        return self._of("batch", batch_id)

    def wake(self, agent: str) -> str:
        """LIST: holds a token while something is ready for `agent`."""
        return self._of("wake", agent)

    def ready(self, agent: str) -> str:
        """LIST: runs of `agent` to take up."""
        return self._of("ready", agent)

    def lease(self, process: str) -> str:
        """STRING that lives as long as the process's heartbeat."""
        return self._of("lease", process)

    def held(self, process: str) -> str:
        """SET: the runs that a process holds."""
        return self._of("held", process)

    def signals(self, process: str) -> str:
        """LIST: what a process has to hear at once."""
        return self._of("signals", process)

    def events(self, owner_id: str) -> str:
        """STREAM: an owner's events."""
        return self._of("events", owner_id)

    def owner(self, owner_id: str) -> str:
        """HASH: an owner's activity."""
        return self._of("owner", owner_id)

    def channel(self, owner_id: str) -> str:
        """Pub/sub channel on which an owner's events are sent as they happen."""
        return self._of("channel", owner_id)

    def orders(self, supervisor: str) -> str:
        """LIST: orders that a supervisor has not taken up yet."""
        return self._of("orders", supervisor)

    def answer(self, order_id: str) -> str:
        """LIST: what became of an order."""
        return self._of("answer", order_id)

    @property
    def layout(self) -> str:
        """HASH: the version of this layout."""
        return self.prefix + _SINGLE["layout"]


def lua_prelude(source: str) -> str:
    """The same names as Lua functions: `run_key(id)`, `wake_key(agent)`, `processes_key()`, ...

    Those alone that `source` calls: a function costs a little in every run of a script, whether it is called or not.
    """
    by_id = {kind: f"(name) return KEYS[1] .. '{short}:' .. name end" for kind, short in _BY_ID.items()}
    single = {kind: f"() return KEYS[1] .. '{short}' end" for kind, short in _SINGLE.items()}
    called = set(re.findall(r"\b(\w+)_key\(", source))
    return "".join(f"local function {kind}_key{rest}\n" for kind, rest in (by_id | single).items() if kind in called)
