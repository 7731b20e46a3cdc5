"""Random histories of everything that can happen to a few runs, as a state machine for Hypothesis.

Every round trip of every client is a step of its own, and its fate is drawn. It is delivered; it stays in flight while
other things happen; it is executed and its reply is lost, so that the client sends it again; or its link breaks, the
client sends it again over a new one, and the old copy arrives later, perhaps long after the answer. This is what TCP
and mailbox/transport/connection.py can do to a request: any request may be executed twice, and late.
Processes die (what they had sent may still arrive), sleep until their runs are reclaimed and continue with their old
tokens, and are reclaimed for each cause, or found by maintenance. Time jumps, sometimes a little backward, which must
do no harm.

At the end of each history no further faults happen: everything must end within a bounded number of rounds.

    machine.py    what may happen, as rules            world.py      the fate of requests, processes and time
    clients.py    processes, and the runs they hold    wire.py       operations as requests, one at a time
    truth.py      what must be true                    servers.py    fakeredis with its own clock, and a Valkey
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from factorial.mailbox.operations import lease, upkeep
from factorial.mailbox.operations.batch import NewBatch, cancel_batch, enqueue_batch
from factorial.mailbox.operations.cancel import cancel, cascade
from factorial.mailbox.operations.commit import Action, Commit
from factorial.mailbox.operations.deliver import deliver
from factorial.mailbox.operations.enqueue import enqueue
from factorial.mailbox.operations.lease import Cause
from factorial.mailbox.operations.steer import steer
from factorial.mailbox.views.read import read_run
from factorial.task import TaskStatus
from tests.model.clients import AGENT, LEASE, PATIENCE, Execution, Process, batch_runs, new_run
from tests.model.truth import FINAL, Truth
from tests.model.wire import Call, at_once
from tests.model.world import DAY, NAMESPACE, Server, World
from tests.redis.doctor import assert_invariants

__all__ = ["History", "play"]

OWNERS = ["alice", "alice", "bob"]
MOST_RUNS = 4
"""Without children: more are enqueued only when some have ended."""
MOST_PROCESSES = 3
DEEPEST = 3
"""Generations below an enqueued run."""
END_EVENTS = {
    Action.COMPLETE: "run_completed", Action.CONCLUDE: "run_completed", Action.FAIL: "run_failed",
}  # fmt: skip
MOST_ROUNDS = 60
"""The rounds within which everything must end when no further faults happen."""

FIGURES = ["histories", "requests", "commits", "duplicates refused", "zombies' writes refused"]

T = TypeVar("T")

DEEDS = {
    "end_turn": 12, "work": 10, "seek": 8, "deliver": 10, "outside": 10, "upkeep": 6, "wait": 2, "die": 2,
    "oversleep": 1,
}  # fmt: skip
"""What may happen next, and how often: methods of `History`."""
ACTIONS = (
    [Action.CONTINUE] * 4 + [Action.COMPLETE, Action.FAIL] * 2 + [action for action in Action if action != "resume"]
)
PATIENCES = [0.0, 30.0, 7200.0]
WAITS = [1.0, 11.0, 31.0, LEASE + 1, LEASE + 1, 7200.0, 2 * DAY, -2.0]

deeds = st.sampled_from([deed for deed, weight in DEEDS.items() for _ in range(weight)])
fates = st.sampled_from(["delivered"] * 5 + ["under way", "reply lost", "copy left", "copy follows", "copy follows"])


class FreshProvider(HypothesisProvider):
    """Hypothesis's own choices, but for each history anew. Its usual way is to try each example again with parts of it
    repeated, which pays for data and not for histories: five of six would hardly differ from the one before.
    """


AVAILABLE_PROVIDERS["fresh"] = FreshProvider


def chosen(among: Sequence[T], pick: int) -> T:
    """One of the options; the first one as a history is shrunk."""
    return among[pick % len(among)]


class History(World, RuleBasedStateMachine):
    """One history."""

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        World.__init__(self)
        self.enqueued = self.batches = self.started = self.number = 0
        self.delivered: list[tuple[str, str]] = []
        self.dead: list[tuple[str, Cause]] = []
        """Dead processes that were not reclaimed yet."""
        self.limits: dict[str, int] = {}

    def mark(self) -> str:
        """A name that nothing else has."""
        self.number += 1
        return f"#{self.number}"

    def from_outside(self, who: str, operation: Any, fate: str, **facts: Any) -> None:
        """An operation of a client that is not a process."""
        call = Call(who, operation, facts=facts)
        self.calls.append(call)
        self.send(call, fate)

    # -- clients outside

    @initialize(limit=st.sampled_from([0, 1, 2]))
    def begin_history(self, limit: int) -> None:
        """One process, one run, and how many of its runs an owner may have held."""
        self.limits = {"owner_limit": limit}
        self.truth = Truth(limit)
        self.tell(f"owner limit {limit}")
        self.enqueue(new=True, pick=0, fate="delivered")
        self.start_process("delivered")

    @rule(deed=deeds, variant=st.integers(0, 287), pick=st.integers(0, 5), fate=fates)
    def happen(self, deed: str, variant: int, pick: int, fate: str) -> None:
        """One step of the history. One rule with weights, for Hypothesis would leave whole rules out of a history."""
        getattr(self, deed)(variant, pick, fate)

    def outside(self, variant: int, pick: int, fate: str) -> None:
        """A client enqueues, steers, cancels, or delivers a result."""
        what = chosen(
            [
                "new",
                "deliver",
                "steer",
                "new",
                "deliver",
                "steer",
                "new",
                "deliver",
                "deliver",
                "again",
                "cancel",
                "new batch",
                "cancel batch",
            ],
            variant,
        )
        run = chosen(sorted(self.truth.runs) or ["t0"], pick)
        calls = [
            (run, key.split("tool:")[1])
            for kind in ("awaits", "journal")
            for run, names in sorted(self.found[kind].items())
            for key in sorted(names)
            if key.startswith(("expected:tool:", "tool:c"))
        ] + self.delivered[-2:]
        match what:
            case "new" if self.unfinished < MOST_RUNS:
                self.enqueue(new=True, pick=pick, fate=fate)
            case "again":
                self.enqueue(new=False, pick=pick, fate=fate)
            case "new batch" if self.unfinished < MOST_RUNS:
                self.enqueue_batch(self.batches, pick, fate)
                self.batches += 1
            case "new batch" | "cancel batch" if self.batches:
                number = pick % self.batches
                if variant % 3 == 0:
                    self.enqueue_batch(number, number, fate)  # once more, as it was
                else:
                    ids = [run.task_id for run in batch_runs(number)]
                    operation = cancel_batch(self.wire, batch_id=f"b{number}", task_ids=ids)
                    self.from_outside("somebody", operation, fate)
            case "deliver" if calls:
                self.deliver_result(*chosen(calls, pick), fate)
            case "cancel":
                self.from_outside("somebody", cancel(self.wire, task_id=run), fate)
            case _:
                name = self.mark()
                operation = steer(self.wire, task_id=run, message_id=name, messages=[b'"steer %s"' % name.encode()])
                self.from_outside("somebody", operation, fate)

    def enqueue(self, *, new: bool, pick: int, fate: str) -> None:
        """A new run, or one that was enqueued before."""
        if new:
            run = f"t{self.enqueued}"
            self.enqueued += 1
        else:
            run = f"t{pick % self.enqueued}"
        made, owner = new_run(run), OWNERS[int(run[1:]) % len(OWNERS)]
        operation = enqueue(
            self.wire, task_id=run, agent=AGENT, owner_id=owner, conversation=made.conversation, fields=made.fields
        )
        self.from_outside("somebody", operation, fate)

    def enqueue_batch(self, number: int, pick: int, fate: str) -> None:
        """A batch of two runs. Its progress counts turns if its number is odd."""
        runs = batch_runs(number)
        batch = NewBatch(f"b{number}", f"b{number}", OWNERS[number % len(OWNERS)], AGENT, len(runs), 3 * (number % 2))
        self.from_outside("somebody", enqueue_batch(self.wire, batch, runs), fate, runs=runs)

    def deliver_result(self, run: str, call: str, fate: str) -> None:
        """A client delivers the result of a deferred call."""
        self.delivered.append((run, call))
        result = b'{"output_str":"%s"}' % self.mark().encode()
        self.from_outside("somebody", deliver(self.wire, task_id=run, tool_call_id=call, result=result), fate)

    # -- processes, and the runs that they hold

    def seek(self, variant: int, pick: int, fate: str) -> None:
        """A process with a free slot takes the wake token, if there is one, and claims; or a process is started."""
        able = [process for process in self.processes if process.free_slots > 0 and not process.claiming]
        if not able:
            if len(self.processes) < MOST_PROCESSES:
                self.start_process(fate)
        elif self.take_token(chosen(able, pick)) or variant % 4 == 3:  # or it claims without a token
            self.send(chosen(able, pick).claim(self.limits), fate)
        elif self.under_way:
            self.deliver(variant, pick, fate)
        else:
            self.outside(0, pick, fate)

    def start_process(self, fate: str) -> None:
        """Start a process, which registers."""
        self.started += 1
        process = Process(f"p{self.started}", self.wire)
        self.processes.append(process)
        self.send(process.register(), fate)

    def work(self, variant: int, pick: int, fate: str) -> None:
        """Within a turn: a step is recorded, a deferred call begins, children are spawned."""
        if not self.idle:
            return self.seek(variant, pick, fate)
        what = chosen(["x", "y", "c0", "c1", "c0", "c1", "spawn one", "spawn a batch"], variant)
        execution, mark = chosen(self.idle, pick), self.mark()
        if what.startswith("spawn") and execution.run.count(".") < DEEPEST:
            self.send(execution.spawn("c" if what == "spawn one" else "b", chosen(PATIENCES, variant // 8)), fate)
            return
        if what.startswith("c"):
            entries = {f"expected:tool:c{execution.turn}.{what[1]}": b"1"}
        else:
            entries = {f"tool:{what}": b"1", f"message:tool:{what}": b'"%s %s"' % (what.encode(), mark.encode())}
        self.send(execution.record(entries, _event(mark)), fate)

    def end_turn(self, variant: int, pick: int, fate: str) -> None:
        """A turn ends. Sometimes its conversation was edited, or it also awaits a run that is not its child."""
        if not self.idle:
            return self.seek(variant, pick, fate)
        action, patience, odd = chosen(ACTIONS, variant), chosen(PATIENCES, variant // 16), variant // 48 % 6 == 5
        execution = chosen(self.idle, pick)
        if (execution.expected or execution.spawned) and variant % 4:
            action = Action.PARK  # calls that have begun are mostly awaited
        more: dict[str, Any] = (
            {"error": "oh", "delay": 10.0} if action in (Action.FAIL, Action.BACKOFF, Action.DEFER) else {}
        )
        if action is Action.PARK:
            awaited = {key: patience for key in execution.expected} | {
                f"child:{child}": its_patience for child, its_patience in execution.spawned.items()
            }
            if odd:  # it has no such child: this is answered at once
                awaited["child:t0"] = patience
            if not awaited:
                return self.work(2 + variant % 6, pick, fate)
            more = {"awaits": awaited, "plan": b"[]"}
        elif odd and action is Action.CONTINUE:
            more = {"rewrite": True}
        self.settle(execution, action, fate, **more)

    def settle(self, execution: Execution, action: Action, fate: str, **more: Any) -> None:
        """The commit of a turn, with all that a turn may leave behind."""
        done = action in (Action.CONTINUE, Action.COMPLETE, Action.CONCLUDE, Action.PARK)
        mark = self.mark().encode()
        results = [b'm"%s is %s"' % (key.encode(), mark) for key in execution.awaited if key.startswith("tool:")]
        recorded = sorted(b"j" + name.encode() for name in execution.journal if name.startswith("message:"))
        ids = {"task_id": execution.run, "owner_id": execution.owner, "agent_name": AGENT}
        told = json.dumps(ids, separators=(",", ":"))[1:-1].encode()
        work = Commit(
            action=action,
            turn_done=done,
            messages=[b'm"turn %s"' % mark, *recorded, *results] if done else [],
            fields={"turn": b"%d" % (execution.turn + 1)} if done else {},
            entries={} if done else {"tool:z": b"1"},
            events=[_event(mark.decode())],
            final_events=[_event(f"{mark.decode()} at last", END_EVENTS.get(action, "work"), told)],
            **more,
        )
        self.send(execution.commit(work), fate)

    # -- what happens to requests, processes and time

    def deliver(self, variant: int, pick: int, fate: str) -> None:
        """A request in flight is delivered, or an old copy of one arrives."""
        if self.copies and (variant % 2 == 1 or not self.under_way):
            late = chosen(self.copies, pick)
            self.copies.remove(late)
            self.execute("an old copy", late[1])
        elif self.under_way:
            call = chosen(self.under_way, pick)
            if "message_number" in call.facts and variant % 8 == 0:
                self.tell(f"{call.who} gives up, and does not know what became of its step")
                call.give_up()
            elif fate != "under way":
                self.send(call, fate)

    def upkeep(self, variant: int, pick: int, fate: str) -> None:
        """Upkeep."""
        what = chosen(
            ["reclaim", "promote", "beat", "take inventory", "start", "cascade", "expire", "reclaim process"], variant
        )
        match what:
            case "start" if len(self.processes) < MOST_PROCESSES:
                self.start_process(fate)
            case "reclaim process" if self.dead:
                process, cause = self.dead.pop(pick % len(self.dead))
                self.from_outside("a supervisor", lease.reclaim_process(self.wire, process=process, cause=cause), fate)
            case "beat" if able := [process for process in self.processes if not process.beating]:
                self.send(chosen(able, pick).beat(), fate)
            case "take inventory" if self.processes:
                self.send(chosen(self.processes, pick).take_inventory(), fate)
            case "reclaim" | "promote" | "cascade" | "expire":
                self.maintain(what, 1 if pick == 1 else 100, fate)

    def maintain(self, what: str, most: int, fate: str) -> None:
        """A part of a round of maintenance."""
        operations: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "reclaim": lambda: lease.reclaim(self.wire, most=most),
            "promote": lambda: upkeep.promote(self.wire, agent=AGENT),
            "cascade": lambda: cascade(self.wire),
            "expire": lambda: upkeep.expire(self.wire, agent=AGENT, status=TaskStatus.COMPLETED, ttl=DAY, most=most),
        }
        self.from_outside("maintenance", operations[what](), fate)

    def die(self, variant: int, pick: int, fate: str) -> None:
        """A process dies. Its requests in flight may still arrive. Mostly its supervisor reclaims it at once."""
        if not self.processes:
            return
        cause, arrives, seen = chosen(list(Cause), variant), variant // 3 % 2 == 1, variant // 6 % 4 < 3
        process = chosen(self.processes, pick)
        self.processes.remove(process)
        under_way = [call for call in process.calls if call.request]
        self.tell(f"{process.name} dies" + (", and what it has sent will arrive" if arrives and under_way else ""))
        for call in under_way:
            if arrives and call.request:
                self.copies.append((self.now, call.request))
            call.drop()
        if seen:
            self.from_outside("a supervisor", lease.reclaim_process(self.wire, process=process.name, cause=cause), fate)
        else:
            self.dead.append((process.name, cause))

    def oversleep(self, variant: int, pick: int, fate: str) -> None:
        """A process sleeps until its runs have been reclaimed, and does not know it."""
        busy = [process for process in self.processes if process.executions]
        if not busy:
            return self.seek(variant, pick, fate)
        sleeper = chosen(busy, pick)
        for seconds in (LEASE + 1, PATIENCE + 1):
            self.tell(f"{seconds:g} s pass while {sleeper.name} stands still")
            self.pass_time(seconds, [process for process in self.processes if process is not sleeper])
            self.maintain("reclaim", 100, "delivered")

    def wait(self, variant: int, pick: int, fate: str) -> None:
        """Time passes. Some processes send no heartbeats meanwhile."""
        seconds, asleep = (
            chosen(WAITS, variant),
            chosen(["nobody", "nobody", "nobody", "the first", "the last", "all"], variant // 8),
        )
        sleeping = {
            "nobody": [], "the first": self.processes[:1], "the last": self.processes[-1:], "all": self.processes,
        }[asleep]  # fmt: skip
        names = ", ".join(process.name for process in sleeping)
        self.tell(f"{seconds:g} s pass" + (f" while {names} stand{'s' * (len(sleeping) == 1)} still" if names else ""))
        self.pass_time(seconds, [process for process in self.processes if process not in sleeping])

    # -- the end

    def teardown(self) -> None:
        """No further faults happen: let everything end."""
        try:
            if not self.broken:
                self.end()
        finally:
            for call in self.under_way:
                call.drop()
            self.counted.update(self.truth.counted)
            self.counted["histories"] += 1

    def end(self) -> None:
        """Let everything end, and check what is left."""
        self.tell("from now on nothing goes wrong")
        while self.copies:
            self.execute("an old copy", self.copies.pop(0)[1])
        if not self.processes:
            self.start_process("delivered")
        for _ in range(MOST_ROUNDS):
            self.deliver_all()
            if self.is_over():
                break
            self.pass_time(70.0, self.processes)
            for what in ("reclaim", "promote", "cascade"):
                self.maintain(what, 100, "delivered")
            self.deliver_all()
            for process in self.processes:
                self.send(process.beat(), "delivered")
                self.send(process.take_inventory(), "delivered")
                self.deliver_all()
                while process.free_slots > 0 and self.take_token(process):
                    self.send(process.claim(self.limits), "delivered")
                    self.deliver_all()
                for execution in [execution for execution in self.idle if execution.process is process]:
                    self.settle(execution, Action.COMPLETE, "delivered")
            self.deliver_all()
            for run in sorted(self.truth.runs):
                stored = at_once(read_run(self.scripts, run))
                for key in stored.awaits if stored else ():
                    if key.startswith("tool:"):
                        self.deliver_result(run, key.removeprefix("tool:"), "delivered")
        try:
            self.truth.all_is_over(self.found)
            self.checking.run(assert_invariants(self.server, NAMESPACE, quiet=True))
        except BaseException:
            self.broken = True
            raise

    def deliver_all(self) -> None:
        """Deliver every request in flight, and those that follow from it."""
        while self.under_way:
            self.send(self.under_way[0], "delivered")

    def is_over(self) -> bool:
        """Whether every run has ended."""
        return all(run["status"] in FINAL for run in self.found["run"].values()) and not self.found["doomed"]


def _event(mark: str, event_type: str = "work", head: bytes = b'"by":"the model"') -> bytes:
    return b'{"event_type":"%s",%s,"mark":"%s"}' % (event_type.encode(), head, mark.encode())


def play(
    server: Server, *, histories: int, steps: int, check_every: int = 1, derandomize: bool = False
) -> Counter[str]:
    """Play so many histories of so many steps on `server`, and return counts. `derandomize`: always the same ones.

    What was accepted is seen to after each request; the invariants of the namespace are asserted after `check_every`
    of them that changed it. The first history that goes wrong is shrunk, and printed line by line.
    """
    with asyncio.Runner() as runner:
        machine: Any = type(
            "Histories",
            (History,),
            {"server": server, "checking": runner, "check_every": check_every, "counted": Counter()},
        )
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=histories,
                    stateful_step_count=steps,
                    derandomize=derandomize,
                    backend="fresh",
                    database=None,
                    deadline=None,
                    print_blob=False,
                    phases=[Phase.generate, Phase.shrink],
                    report_multiple_bugs=False,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            server.close()
    return Counter({name: machine.counted[name] for name in FIGURES})
