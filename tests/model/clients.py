"""The clients of a history: worker processes with the runs that they hold. They call the real operations of
factorial/mailbox; in which order, and what becomes of each request, is decided by the machine.
"""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from factorial.errors import MailboxUnavailableError
from factorial.mailbox.operations import lease
from factorial.mailbox.operations.batch import BatchRun
from factorial.mailbox.operations.cancel import cascade
from factorial.mailbox.operations.claim import Claim, ClaimedRun, ClaimRequest, claim
from factorial.mailbox.operations.commit import Action, Commit, Committed, commit
from factorial.mailbox.operations.record import Accepted, record
from factorial.mailbox.operations.spawn import ChildBatch, NewRun, spawn
from tests.model.wire import Call, Wire

__all__ = ["AGENT", "LEASE", "PATIENCE", "Execution", "Process", "batch_runs", "child_ids", "new_run"]

AGENT = "a"
LEASE = 60.0
PATIENCE = 20.0
SLOTS = 2
RECOVERY_LIMIT = 2


def new_run(run: str) -> NewRun:
    """A run as it is enqueued, or spawned."""
    return NewRun(run, AGENT, [b'"%s begins"' % run.encode()], {"output": b'"out"'})


def batch_runs(number: int) -> list[BatchRun]:
    """The runs of the batch of this number, as a client enqueues them."""
    made = [new_run(f"b{number}r{position}") for position in range(2)]
    return [BatchRun(run.task_id, run.conversation, dict(run.fields)) for run in made]


def child_ids(run: str, turn: int, kind: str) -> list[str]:
    """What a turn spawns: the same in each execution. `kind`: `c`, one child; `b`, a batch."""
    return [f"{run}.{turn}{kind}{number}" for number in range(2 if kind == "b" else 1)]


class Execution:
    """A run that a process executes, and may not hold any more. It has one request in flight at most."""

    def __init__(self, process: "Process", claimed: ClaimedRun) -> None:
        self.process = process
        self.run = claimed.task_id
        self.owner = claimed.owner_id
        self.token = claimed.token
        self.turn = int(claimed.fields.get("turn", b"0"))
        self.message_number = 0
        self.unanswered: tuple[dict[str, bytes], bytes] | None = None
        """The latest record, if it was not answered."""
        self.journal = set(claimed.journal)
        self.awaited: Mapping[str, bytes] = claimed.awaits
        self.spawned: dict[str, float] = {}
        self.cancelled = claimed.cancelled
        self.call: Call | None = None

    @property
    def who(self) -> str:
        """How a history calls it."""
        return f"{self.process.name} with {self.run}"

    def record(self, entries: dict[str, bytes], mark: bytes) -> Call:
        """Record a finished step; or send again what was not answered, under the same number."""
        if self.unanswered:
            entries, mark = self.unanswered
        else:
            self.message_number += 1
        facts = {
            "run": self.run,
            "token": self.token,
            "entries": entries,
            "events": [mark],
            "message_number": self.message_number,
        }
        work = record(
            self.wire,
            task_id=self.run,
            token=self.token,
            message_number=self.message_number,
            entries=entries,
            events=[mark],
        )
        return self._begin(work, lambda answer: self._noted(answer, entries, mark), facts)

    def spawn(self, kind: str, patience: float) -> Call:
        """Spawn a child, or a batch, to be awaited for so long."""
        ids = child_ids(self.run, self.turn, kind)
        children = [new_run(child) for child in ids]
        facts = {"run": self.run, "token": self.token, "children": children}
        batch = f"{self.run}.{self.turn}b" if kind == "b" else ""
        work = spawn(
            self.wire, parent=self.run, token=self.token, batch=ChildBatch(batch) if batch else None, children=children
        )
        return self._begin(work, lambda answer: self._spawned(answer, dict.fromkeys(ids, patience)), facts)

    def commit(self, work: Commit) -> Call:
        """End the turn, or break it off. The commit carries what was not answered."""
        if self.unanswered:
            entries, mark = self.unanswered
            work = replace(
                work,
                entries={} if work.turn_done else {**entries, **work.entries},
                events=[mark, *work.events],
                unanswered=self.message_number,
                unanswered_events=1,
            )
        facts = {"run": self.run, "token": self.token, "work": work}
        sending = commit(self.wire, task_id=self.run, process=self.process.name, token=self.token, work=work)
        return self._begin(sending, lambda answer: self._committed(answer, work), facts)

    @property
    def wire(self) -> Wire:
        """Where its requests go."""
        return self.process.wire

    @property
    def expected(self) -> list[str]:
        """The deferred calls of this turn that have begun, in this attempt at it or an earlier one."""
        return sorted(name.removeprefix("expected:") for name in self.journal if name.startswith("expected:"))

    def _begin(self, work: Coroutine[Any, Any, Any], then: Callable[[Any], None], facts: dict[str, Any]) -> Call:
        self.call = self.process.begin(work, then, who=self.who, facts=facts)
        return self.call

    def _noted(self, answer: Any, entries: dict[str, bytes], mark: bytes) -> None:
        self.call = None
        self.unanswered = (entries, mark) if isinstance(answer, MailboxUnavailableError) else None
        if self.unanswered:
            return
        if isinstance(answer, Accepted):
            self.journal |= entries.keys()
            self.cancelled = self.cancelled or answer.cancelled
        else:
            self._lost()

    def _spawned(self, answer: Any, children: Mapping[str, float]) -> None:
        self.call = None
        if isinstance(answer, Accepted):
            self.cancelled = self.cancelled or answer.cancelled
            self.spawned |= {} if answer.cancelled else children
        else:
            self._lost()

    def _committed(self, answer: Any, work: Commit) -> None:
        self.call = None
        if not isinstance(answer, Committed) or answer.action not in (Action.CONTINUE, Action.RESUME):
            self._lost()
            if isinstance(answer, Committed) and answer.action is Action.CANCEL:
                self.process.begin(cascade(self.wire))
            return
        self.token = self.token.next()
        self.turn += work.turn_done
        self.journal, self.spawned, self.awaited, self.unanswered = set(), {}, answer.awaits, None

    def _lost(self) -> None:
        """The run has ended, was released, or is held by another process."""
        if self.process.executions.get(self.run) is self:
            del self.process.executions[self.run]


@dataclass(eq=False)
class Process:
    """A worker process: a lease, a worker, the runs that it holds."""

    name: str
    wire: Wire
    executions: dict[str, Execution] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    nonces: int = 1
    """The number of its present claim."""
    claiming: bool = False
    beating: bool = False
    differs: set[str] = field(default_factory=set)
    """Runs that it holds by the server's account and does not execute, or the reverse, at its latest inventory."""

    def begin(
        self,
        work: Coroutine[Any, Any, Any],
        then: Callable[[Any], None] = lambda answer: None,
        *,
        who: str = "",
        facts: dict[str, Any] | None = None,
    ) -> Call:
        """An operation of the process, or of one of its executions."""
        call = Call(who or self.name, work, then, facts or {})
        self.calls = [*(earlier for earlier in self.calls if earlier.request), call]
        return call

    def register(self) -> Call:
        """Take a lease."""
        self.beating = True
        work = lease.register(
            self.wire, process=self.name, agent=AGENT, lease=LEASE, patience=PATIENCE, about={"name": self.name}
        )
        return self.begin(work, self._registered)

    def beat(self) -> Call:
        """Renew the lease."""
        self.beating = True
        return self.begin(lease.beat(self.wire, process=self.name, lease=LEASE), self._beaten)

    @property
    def free_slots(self) -> int:
        """How many more runs it may claim."""
        return SLOTS - len(self.executions)

    def claim(self, limits: Mapping[str, int]) -> Call:
        """Claim as many runs as there are free slots. A claim whose answer is lost is sent again as it was."""
        self.claiming = True
        work = claim(self.wire, ClaimRequest(process=self.name, worker="w", agent=AGENT, count=self.free_slots,
            recovery_limit=RECOVERY_LIMIT, nonce=f"{self.nonces}-{self.name}", **limits))  # fmt: skip
        return self.begin(work, self._claimed)

    def take_inventory(self) -> Call:
        """Compare what it executes with what the server says it holds. Release, or abandon, what differs twice."""
        return self.begin(lease.held(self.wire, process=self.name), self._compare)

    def _registered(self, held: set[str]) -> None:
        self.beating = False
        self.executions = {run: execution for run, execution in self.executions.items() if run in held}

    def _beaten(self, alive: bool) -> None:
        self.beating = False
        if not alive:
            self.register()

    def _claimed(self, answer: Any) -> None:
        self.claiming = False
        if isinstance(answer, Claim):
            self.nonces += 1
            for found in answer.runs:
                self.executions[found.task_id] = Execution(self, found)
        elif not self.beating:
            self.register()

    def _compare(self, held: set[str]) -> None:
        differs = held ^ self.executions.keys()
        again, self.differs = differs & self.differs, differs
        for run in again - held:
            del self.executions[run]
        if again & held:
            self.begin(lease.release(self.wire, process=self.name, task_ids=sorted(again & held)))
