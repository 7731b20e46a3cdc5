"""The world of a history: a server, the clients, the requests in flight between them, and the time.

After each request that the server executes, truth.py compares the namespace with what must be true, and the invariants
are asserted. Each thing that happens is a line of the history, which Hypothesis prints if it goes wrong.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from hypothesis import note

from factorial.mailbox.keys import Keys
from factorial.mailbox.script import Scripts
from tests.model.clients import AGENT, LEASE, Execution, Process
from tests.model.servers import Contents, FakeServer, RealServer
from tests.model.truth import FINAL, Truth
from tests.model.wire import Call, Request, Wire, at_once
from tests.model.words import described, heard
from tests.redis.doctor import assert_invariants

__all__ = ["DAY", "NAMESPACE", "Server", "World"]

NAMESPACE = "ns"
DAY = 86400.0
CONSTANTS = {
    "EVENTS_MAX": 100_000, "EVENTS_TTL_MS": 3650 * 86_400_000, "METRICS_BUCKET": 3600, "METRICS_RETENTION": 86_400,
}  # fmt: skip
RETRY_FOR = 60.0
"""Seconds after which a client gives a request up. No link delays a copy for longer than that."""

Server = FakeServer | RealServer


class World:
    """A server whose namespace is empty when a history begins, and its clients."""

    server: ClassVar[Server]
    checking: ClassVar[asyncio.Runner]
    check_every: ClassVar[int]
    counted: ClassVar[Counter[str]]

    def __init__(self) -> None:
        self.server.empty()
        keys = Keys(NAMESPACE)
        self.keys = keys
        self.scripts = Scripts(self.server, keys, CONSTANTS)
        self.wire = Wire(keys)
        self.processes: list[Process] = []
        self.calls: list[Call] = []
        """Of clients that are not processes."""
        self.copies: list[tuple[float, Request]] = []
        """Requests that a broken link may still deliver: when each was sent, and what it is."""
        self.token_with: Process | None = None
        """The process that took the wake token, while the token is missing."""
        self.now = 0.0
        self.broken = False
        """A check has failed: no further checks."""
        self._quiet = False
        self._unchecked = 0
        self.truth = Truth()
        self.found = self.look()

    def tell(self, line: str) -> None:
        """A line of the history."""
        note(f"    {line}")

    def look(self) -> Contents:
        """The whole namespace."""
        return self.server.contents(self.keys.prefix)

    def send(self, call: Call, fate: str) -> None:
        """Decide the fate of the client's current request."""
        request = call.request
        assert request is not None
        if fate == "under way":
            self.tell(f"{call.who} sends: {described(request)}. It is under way")
        elif fate == "copy left":
            self.tell(f"{call.who} sends: {described(request)}. Its link breaks: it will send it again")
            self.copies.append((self.now, request))
        elif fate == "reply lost":
            self.execute(call.who, request, ". The reply is lost: it will send it again")
        elif fate == "copy follows":
            self.copies.append((self.now, request))
            call.reply(self.execute(call.who, request, ". This was sent again, and an old copy of it is under way"))
        else:
            call.reply(self.execute(call.who, request))
        self.calls = [call for call in self.calls if call.request]

    def execute(self, who: str, request: Request, also: str = "") -> Any:
        """The server executes a request, and everything is checked."""
        try:
            if type(request.name) is str and request.name.islower():
                reply = at_once(self.scripts.run(request.name, *request.args))
            else:
                reply = self.server.answer(request.name, *request.args)
            self.tell(f"{who}: {described(request)} -> {heard(request, reply)}{also}")
            self.counted["requests"] += 1
            before, self.found = self.found, self.look()
            self.truth.observe(request, reply, before, self.found)
            self.see_to_the_token(request, reply, before)
            self.see_to_the_invariants(changed=before != self.found)
        except BaseException:
            self.broken = True
            raise
        return reply

    def see_to_the_token(self, request: Request, reply: Any, before: Contents) -> None:
        """The process that took the wake token must restore it, unless a claim does, or others find it missing."""
        if self.token_with is not None and (
            self.found["wake"].get(AGENT)
            or request.name == "promote"
            or (request.name == "claim" and reply[0] == b"OK")
            or self.token_with.name
            in before["processes"].get("", {}).keys() - self.found["processes"].get("", {}).keys()
        ):
            self.token_with = None

    def see_to_the_invariants(self, *, changed: bool) -> None:
        """Assert the invariants after `check_every` requests that changed something."""
        was_quiet, self._quiet = self._quiet, self.token_with is None
        self._unchecked += changed or self._quiet > was_quiet
        if self._unchecked >= self.check_every:
            self._unchecked = 0
            self.checking.run(assert_invariants(self.server, NAMESPACE, quiet=self._quiet))

    def take_token(self, process: Process) -> bool:
        """What `BLPOP` does."""
        if self.server.answer("LPOP", self.keys.wake(AGENT)) is None:
            return False
        self.tell(f"{process.name} takes the wake token")
        self.token_with = process
        self.found = self.look()
        return True

    def pass_time(self, seconds: float, awake: Sequence[Process]) -> None:
        """Let time pass, while the processes that are awake send heartbeats."""
        for process in awake:
            self.server.answer("PEXPIRE", self.keys.lease(process.name), round(1000 * (LEASE + max(0.0, seconds))))
        self.server.pass_time(seconds, self.keys.prefix)
        self.now += max(0.0, seconds)
        self.copies = [(sent, request) for sent, request in self.copies if self.now - sent < RETRY_FOR]
        if seconds >= RETRY_FOR:
            for call in self.calls:
                call.drop()
            self.calls = []
        self.found = self.look()

    @property
    def unfinished(self) -> int:
        """How many runs have not ended."""
        return sum(run["status"] not in FINAL for run in self.found["run"].values())

    @property
    def under_way(self) -> list[Call]:
        """All operations that wait for a reply."""
        return [call for process in self.processes for call in process.calls if call.request] + self.calls

    @property
    def idle(self) -> list[Execution]:
        """The executed runs that have no request in flight."""
        return [
            execution for process in self.processes for execution in process.executions.values() if not execution.call
        ]
