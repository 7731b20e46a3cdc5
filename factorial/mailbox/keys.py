"""The name of every key, in one place: for Python as functions of `Keys`, for Lua as the prelude of every script.

A key is `{namespace:0}:<kind>:<name>`, or `{namespace:0}:<kind>` if there is only one of its kind. The braces are a
hash tag: on Redis Cluster a run, its owner's events and its queue share a slot, so one script may change them together.
The 0 leaves room for a namespace of several slots.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["KINDS", "LAYOUT_VERSION", "Keys", "Kind", "lua_prelude"]

LAYOUT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of key."""

    name: str
    """What the last part of the key is: '<id>', '<agent>:<owner>', ... Empty: there is one key of this kind."""
    type: str
    """Redis' name of its type."""
    holds: str
    kept: bool = False
    """Of a run's own keys: whether the run keeps it when it has ended."""
    called: str = ""
    """What it is called in messages, if that is not the kind."""

    @property
    def is_of_run(self) -> bool:
        """Whether each run has a key of its own of this kind."""
        return self.name == "<id>"


KINDS = {
    "run": Kind(
        "<id>",
        "HASH",
        "status, token (epoch, nonce, seq), holder, counters, cancel request, error",
        kept=True,
        called="hash",
    ),
    "conversation": Kind("<id>", "LIST", "the messages, append-only", kept=True),
    "fields": Kind(
        "<id>", "HASH", "the context's other fields; only changed ones are written", kept=True, called="context"
    ),
    "journal": Kind("<id>", "HASH", "the recorded steps of the current turn"),
    "mail": Kind("<id>", "LIST", "steering that the run has not read", called="unread steering"),
    "seen": Kind("<id>", "SET", "ids of accepted steering", called="list of accepted steering"),
    "awaits": Kind(
        "<id>", "HASH", "what a parked run awaits, with the results that have arrived", called="list of awaits"
    ),
    "children": Kind("<id>", "SET", "the runs that it spawned and that have not ended", called="list of children"),
    "batch": Kind("<batch>", "HASH", "how many runs it has, how many have ended, and who spawned or enqueued them"),
    "ready": Kind("<agent>", "LIST", "runs to claim"),
    "throttled": Kind("<agent>:<owner>", "ZSET", "queued runs beyond `owner_limit`, by the time of their enqueueing"),
    "running": Kind("<agent>", "HASH", "how many runs of each owner are held"),
    "suspects": Kind("<agent>", "LIST", "suspects to claim, one to a process"),
    "passed": Kind("<agent>", "SET", "processes that hold a suspect and passed the wake token on"),
    "due": Kind("<agent>", "ZSET", "runs in backoff, and parked runs with a deadline, by the time they are due"),
    "deferred": Kind("<agent>", "HASH", "deferred runs in backoff, each with the error for which it is deferred"),
    "parked": Kind("<agent>", "SET", "runs that await results or children"),
    "wake": Kind("<agent>", "LIST", "one token if something is ready"),
    "ended": Kind("<agent>:<status>", "ZSET", "ended runs, by the time of their end"),
    "lease": Kind("<process>", "STRING", "exists as long as the process sends heartbeats"),
    "held": Kind("<process>", "SET", "the runs that the process holds"),
    "signals": Kind("<process>", "LIST", "signals that the process has not read"),
    "claims": Kind("<process>", "HASH", "each worker's latest claim; the suspect, agent and patience of the process"),
    "bucket": Kind("<length>:<kept for>:<beginning>:<agent>", "HASH", "counts of one span of time"),
    "events": Kind("<owner>", "STREAM", "stored events, trimmed"),
    "published": Kind("<message id>", "STRING", "exists for a while after the message was accepted"),
    "owner": Kind("<owner>", "HASH", "how many runs are active, and since which event"),
    "orders": Kind("<supervisor>", "LIST", "orders that the supervisor has not taken; short-lived"),
    "order": Kind("<order>", "STRING", "exists for a while after the order was sent"),
    "answer": Kind("<order>", "LIST", "the outcome of the order; short-lived"),
    "channel": Kind("<owner>", "pub/sub", "events as they are published; `channel@<n>:<owner>` in database n > 0"),
    "processes": Kind("", "ZSET", "registered processes, by the time since which the lease is missing (0: it is not)"),
    "doomed": Kind("", "LIST", "runs to cancel: their parents or batches were cancelled, or no longer await them"),
    "supervisors": Kind("", "ZSET", "supervisors, by the time of their latest report"),
    "reports": Kind("", "HASH", "the latest report of each supervisor (JSON)"),
    "timeline": Kind("", "ZSET", "the names of the buckets, by the time at which they expire"),
    "layout": Kind("", "HASH", "the version of this layout; clients of another version are refused"),
}


class Keys:
    """The key names of one namespace in one database of the server.

    Pub/sub is the same in all databases. So the names of channels contain the number of the database, except for
    database 0.
    """

    def __init__(self, namespace: str, database: int = 0) -> None:
        self.prefix: str = f"{{{namespace}:0}}:"
        self.database = database

    def key(self, kind: str, name: str = "") -> str:
        """The key of any kind: 'run' and an id, 'ready' and an agent's name, 'processes', ..."""
        if kind == "channel":
            return f"{self.prefix}{_channel_kind(self.database)}:{name}"
        return f"{self.prefix}{kind}:{name}" if KINDS[kind].name else f"{self.prefix}{kind}"

    def parse(self, key: str) -> tuple[str, str]:
        """The kind and the name of a stored key. Both are empty if the key is not part of the layout."""
        kind, colon, name = key.removeprefix(self.prefix).partition(":")
        return (kind, name) if kind in KINDS and bool(colon) == bool(KINDS[kind].name) else ("", "")

    def run(self, task_id: str) -> str:
        """HASH: status, token and counters of a run."""
        return self.key("run", task_id)

    def conversation(self, task_id: str) -> str:
        """LIST: a run's messages."""
        return self.key("conversation", task_id)

    def awaits(self, task_id: str) -> str:
        """HASH: what a parked run awaits, with the results that have arrived."""
        return self.key("awaits", task_id)

    def batch(self, batch_id: str) -> str:
        """HASH: how many runs a batch has, and how many of them have ended."""
        return self.key("batch", batch_id)

    def wake(self, agent: str) -> str:
        """LIST: holds a token while something is ready for `agent`."""
        return self.key("wake", agent)

    def ready(self, agent: str) -> str:
        """LIST: runs of `agent` to claim."""
        return self.key("ready", agent)

    def lease(self, process: str) -> str:
        """STRING that exists as long as the process sends heartbeats."""
        return self.key("lease", process)

    def held(self, process: str) -> str:
        """SET: the runs that a process holds."""
        return self.key("held", process)

    def signals(self, process: str) -> str:
        """LIST: signals that a process has not read."""
        return self.key("signals", process)

    def events(self, owner_id: str) -> str:
        """STREAM: an owner's events."""
        return self.key("events", owner_id)

    def owner(self, owner_id: str) -> str:
        """HASH: an owner's activity."""
        return self.key("owner", owner_id)

    def channel(self, owner_id: str) -> str:
        """Pub/sub channel on which an owner's events are published."""
        return self.key("channel", owner_id)

    def orders(self, supervisor: str) -> str:
        """LIST: orders that a supervisor has not taken."""
        return self.key("orders", supervisor)

    def answer(self, order_id: str) -> str:
        """LIST: the outcome of an order."""
        return self.key("answer", order_id)

    @property
    def layout(self) -> str:
        """HASH: the version of this layout."""
        return self.key("layout")

    @property
    def layout_1(self) -> str:
        """HASH: where a namespace of layout 1 keeps its version."""
        return self.prefix + "V"


def _channel_kind(database: int) -> str:
    return f"channel@{database}" if database else "channel"


def lua_prelude(source: str, database: int = 0) -> str:
    """The same names as Lua functions: `run_key(id)`, `wake_key(agent)`, `processes_key()`, ...

    `keys_of_run(id)` returns all keys of one run; `keys_of_active_run(id)`, those that it has only until its end.

    Only those that `source` calls are defined: each definition costs a little in every run of a script.
    """
    functions = {
        f"{kind}_key": f"(name) return KEYS[1] .. '{kind}:' .. name end"
        if about.name
        else f"() return KEYS[1] .. '{kind}' end"
        for kind, about in KINDS.items()
    }
    functions["channel_key"] = f"(name) return KEYS[1] .. '{_channel_kind(database)}:' .. name end"
    functions["keys_of_run"] = _lua_keys([kind for kind, about in KINDS.items() if about.is_of_run])
    functions["keys_of_active_run"] = _lua_keys(
        [kind for kind, about in KINDS.items() if about.is_of_run and not about.kept]
    )
    called = set(re.findall(r"\b(\w+)\(", source))
    return "".join(f"local function {name}{rest}\n" for name, rest in functions.items() if name in called)


def _lua_keys(kinds: Iterable[str]) -> str:
    keys = ", ".join(f"KEYS[1] .. '{kind}:' .. id" for kind in kinds)
    return f"(id) return {keys} end"
