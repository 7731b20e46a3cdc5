"""Random histories of everything that can happen to a few runs, and what must be true of them after each step.

Processes claim, work, spawn children, park, commit twice, commit with tokens they held long ago, die, come back and are
reclaimed, while clients enqueue, steer, cancel and give results: before they are waited for, twice, and too late. The
server is a real Valkey and the scripts are real; nothing is fake. A failure is repeated by its seed.
"""

import random
from collections import Counter

import pytest

from factorial._core.json import load_json
from factorial.errors import InactiveTaskError
from factorial.mailbox import Namespace
from factorial.mailbox.operations import lease, upkeep
from factorial.mailbox.operations.cancel import cancel, cascade
from factorial.mailbox.operations.claim import Claim, ClaimRequest, Token, claim
from factorial.mailbox.operations.commit import Action, Commit, Committed, commit
from factorial.mailbox.operations.deliver import deliver
from factorial.mailbox.operations.enqueue import enqueue
from factorial.mailbox.operations.lease import Cause
from factorial.mailbox.operations.record import Accepted, record
from factorial.mailbox.operations.spawn import ChildBatch, NewRun, spawn
from factorial.mailbox.operations.steer import steer
from factorial.mailbox.views.read import read_run
from tests.redis.doctor import assert_invariants

RUNS = [f"t{number}" for number in range(4)]
PROCESSES = ["p1", "p2"]


class History:
    """One random history: what was done, and what was answered."""

    def __init__(self, mailbox: Namespace, seed: int) -> None:
        self.mailbox = mailbox
        self.scripts = mailbox.scripts
        self.random = random.Random(seed)
        self.tokens: list[tuple[str, str, Token]] = []
        """Every token of every claim: run, process, token."""
        self.cancelled: set[str] = set()
        self.steered: Counter[str] = Counter()
        self.enqueued: set[str] = set()
        self.calls: list[tuple[str, str]] = []
        """Deferred calls that have begun: run, call id. Each is awaited once."""
        self.delivered: set[tuple[str, str]] = set()

    async def happen(self) -> None:
        """One step of the history."""
        deeds = {
            self.enqueue: 2, self.claim: 5, self.work: 3, self.settle: 8, self.park: 4, self.spawn: 2, self.deliver: 4,
            self.steer: 2, self.cancel: 1, self.die: 1, self.lose_lease: 1, self.maintain: 3,
        }  # fmt: skip
        await self.random.choices(list(deeds), list(deeds.values()))[0]()

    async def enqueue(self) -> None:
        run = self.random.choice(RUNS)
        await enqueue(self.scripts, task_id=run, agent="a", owner_id="o", conversation=[b"{}"], fields={"query": b'""'})
        self.enqueued.add(run)

    async def claim(self) -> None:
        """Like a process that took a wake token: register if necessary, and claim, sometimes twice."""
        process, count, nonce = self.random.choice(PROCESSES), self.random.randint(0, 3), f"n{self.random.random()}"
        await self.mailbox.connection.execute("LPOP", self.mailbox.keys.wake("a"))
        for _ in range(self.random.randint(1, 3)):
            answer = await claim(
                self.scripts,
                ClaimRequest(process=process, worker="w", agent="a", count=count, recovery_limit=2, nonce=nonce),
            )
            if not isinstance(answer, Claim):
                await self.register(process)
        if isinstance(answer, Claim):
            self.tokens += [(found.task_id, process, found.token) for found in answer.runs]
        else:
            await upkeep.promote(self.scripts, agent="a")  # it died after it took the token

    async def register(self, process: str) -> None:
        await lease.register(self.scripts, process=process, agent="a", lease=60, patience=0, about={})

    async def work(self) -> None:
        if self.tokens:
            run, _, token = self.random.choice(self.tokens)
            entries = {f"tool:{self.random.randint(0, 2)}": b"{}"}
            await record(
                self.scripts,
                task_id=run,
                token=token,
                message_number=self.random.randint(1, 5),
                entries=entries,
                events=[],
            )

    async def settle(self) -> None:
        """Mostly with the latest token, sometimes with an old one; and sometimes twice."""
        if not self.tokens:
            return
        recent = self.random.random() < 0.7
        run, process, token = self.tokens[-1] if recent else self.random.choice(self.tokens)
        action = self.random.choice(
            [Action.CONTINUE] * 4 + [Action.COMPLETE, Action.BACKOFF, Action.RELEASE, Action.FAIL]
        )
        done = action in (Action.CONTINUE, Action.COMPLETE) or self.random.random() < 0.3
        event = b'{"event_type":"commit","run":"%s","seq":%d}' % (run.encode(), token.seq)
        await self.commit(run, process, token, Commit(action, turn_done=done, events=[event], messages=[b"m{}"]))

    async def commit(self, run: str, process: str, token: Token, work: Commit) -> None:
        answers = [
            await commit(self.scripts, task_id=run, process=process, token=token, work=work)
            for _ in range(self.random.randint(1, 2))
        ]
        if isinstance(answers[0], Committed):
            assert answers[-1] == answers[0]
            if answers[0].action is Action.CANCEL:
                await cascade(self.scripts)  # as a worker does it
            if answers[0].action is Action.RESUME:
                assert not any(value[:1] == b"?" for key, value in answers[0].awaits.items() if ":" in key)
            if (run, process, token.next()) not in self.tokens:
                self.tokens.append((run, process, token.next()))

    async def park(self) -> None:
        """Begin some calls, perhaps get a result, and park for them and for some runs, mostly its own children."""
        if not self.tokens:
            return
        run, process, token = self.tokens[-1] if self.random.random() < 0.7 else self.random.choice(self.tokens)
        calls = [f"c{len(self.calls)}_{number}" for number in range(self.random.randint(0, 2))]
        self.calls += [(run, call) for call in calls]
        if self.random.random() < 0.8:
            entries = {f"expected:tool:{call}": b"1" for call in calls}
            await record(
                self.scripts,
                task_id=run,
                token=token,
                message_number=self.random.randint(1, 5),
                entries=entries,
                events=[],
            )
        if self.random.random() < 0.3:
            await self.deliver()
        own = sorted(name for name in self.enqueued if name.startswith(f"{run}."))
        known = own if own and self.random.random() < 0.8 else sorted(self.enqueued)
        children = self.random.sample(known, self.random.randint(0, min(3, len(known))))
        keys = [*(f"tool:{call}" for call in calls), *(f"child:{child}" for child in children)]
        awaited = {key: self.random.choice([0, 0, 0.001, 3600]) for key in keys}
        if awaited:
            event = b'{"event_type":"commit","run":"%s","seq":%d}' % (run.encode(), token.seq)
            work = Commit(Action.PARK, turn_done=True, events=[event], plan=b"[]", awaits=awaited)
            await self.commit(run, process, token, work)

    async def spawn(self) -> None:
        """Like a step that is executed again: the same children, whatever process executes it."""
        if self.tokens:
            run, _, token = self.random.choice(self.tokens[-3:])
            batch = self.random.choice(["", "b"])
            names = [f"{run}.{batch}{number}" for number in range(2)] if run.count(".") < 2 else []
            children = [NewRun(name, "a", [b"{}"], {"query": b'""', "output": b'"out"'}) for name in names]
            answer = await spawn(
                self.scripts,
                parent=run,
                token=token,
                batch=ChildBatch(f"{run}.b") if batch else None,
                children=children,
            )
            if isinstance(answer, Accepted) and not answer.cancelled:
                self.enqueued.update(names)

    async def deliver(self) -> None:
        """Deliver a result, mostly for a recent call. It is accepted once."""
        if self.calls:
            run, call = self.random.choice(self.calls[-6:])
            accepted = [
                await deliver(self.scripts, task_id=run, tool_call_id=call, result=b'{"output_str":""}')
                for _ in range(self.random.randint(1, 2))
            ]
            assert accepted.count(True) <= ((run, call) not in self.delivered)
            if True in accepted:
                self.delivered.add((run, call))

    async def steer(self) -> None:
        run = self.random.choice(sorted(self.enqueued) or RUNS)
        if run in self.enqueued:
            message_id = f"{self.random.random()}"
            try:
                for _ in range(self.random.randint(1, 2)):
                    await steer(self.scripts, task_id=run, message_id=message_id, messages=[b'{"steer":1}'])
                self.steered[run] += 1
            except InactiveTaskError:
                pass

    async def cancel(self) -> None:
        run = self.random.choice(sorted(self.enqueued) or RUNS)
        if run in self.enqueued:
            try:
                await cancel(self.scripts, task_id=run)
                self.cancelled.add(run)
            except InactiveTaskError:
                pass

    async def die(self) -> None:
        process, cause = self.random.choice(PROCESSES), self.random.choice([Cause.CRASHED] * 3 + list(Cause))
        for _ in range(self.random.randint(1, 2)):
            await lease.reclaim_process(self.scripts, process=process, cause=cause)
        await cascade(self.scripts)

    async def lose_lease(self) -> None:
        await self.mailbox.connection.execute("DEL", self.mailbox.keys.lease(self.random.choice(PROCESSES)))

    async def maintain(self) -> None:
        await lease.reclaim(self.scripts, most=self.random.randint(1, 5))
        for run in self.enqueued:  # time passes
            await self.mailbox.connection.execute("ZADD", self.mailbox.keys.prefix + "due:a", "XX", 1, run)
        await upkeep.promote(self.scripts, agent="a")
        await cascade(self.scripts)

    async def end(self) -> None:
        """Let everything end."""
        for process in PROCESSES:
            await lease.reclaim_process(self.scripts, process=process, cause=Cause.LEFT)
        await self.register("p1")
        for _ in range(100):
            await self.maintain()
            answer = await claim(
                self.scripts, ClaimRequest(process="p1", worker="w", agent="a", count=9, recovery_limit=2)
            )
            assert isinstance(answer, Claim)
            for found in answer.runs:
                token = found.token
                while True:
                    work = Commit(Action.COMPLETE, turn_done=True)
                    settled = await commit(self.scripts, task_id=found.task_id, process="p1", token=token, work=work)
                    assert isinstance(settled, Committed)
                    if settled.action is not Action.CONTINUE:
                        break
                    token = token.next()
            parked = await self.open_calls()
            for run, call in parked:
                assert await deliver(self.scripts, task_id=run, tool_call_id=call, result=b"{}")
            if not parked and not answer.runs and answer.next_due is None:
                return
        raise AssertionError("it does not end")

    async def open_calls(self) -> list[tuple[str, str]]:
        """The open deferred calls of parked runs."""
        stored = [await read_run(self.scripts, run) for run in self.enqueued]
        return [
            (run.task_id, key.removeprefix("tool:"))
            for run in stored
            if run is not None
            for key in run.awaits
            if key.startswith("tool:")
        ]


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_the_invariants_hold(mailbox: Namespace, seed: int) -> None:
    history = History(mailbox, seed)
    namespace = mailbox.redis.namespace
    for number in range(120):
        await history.happen()
        if number % 2 == 0:
            await assert_invariants(mailbox.connection, namespace, quiet=True, end_events=False)
    await history.end()
    await assert_invariants(mailbox.connection, namespace, quiet=True, end_events=False)

    stored = await mailbox.connection.execute("XRANGE", mailbox.keys.events("o"), "-", "+")
    events = [parts[1] for _, parts in stored]
    commits = Counter(event for event in events if b'"event_type":"commit"' in event)
    assert all(count == 1 for count in commits.values()), "one accepted commit per run and number"
    for run in history.enqueued:
        found = await read_run(mailbox.scripts, run)
        assert found is not None and found.status.is_final
        parent = await read_run(mailbox.scripts, found.parent_id) if found.parent_id else None
        if parent and parent.status == "cancelled" and found.status != "cancelled":
            assert found.ended_at and parent.ended_at and found.ended_at <= parent.ended_at, "children go with it"
        if run in history.cancelled:
            assert found.status == "cancelled", "an accepted cancel ends as cancelled"
        messages = [load_json(message) for message in found.conversation].count({"steer": 1})
        told = any(b'"run_steering_failed"' in event and b'"task_id":"%s"' % run.encode() in event for event in events)
        assert messages <= history.steered[run]
        assert messages == history.steered[run] or (told and found.status != "completed"), (
            "accepted steering is applied"
        )
        mine = b'"task_id":"%s"' % run.encode()
        ends = [event for event in events if b'"run_cancelled"' in event and mine in event]
        assert len(ends) == (found.status == "cancelled")
    assert await mailbox.connection.execute("HGET", mailbox.keys.owner("o"), "active") in (None, b"0")
