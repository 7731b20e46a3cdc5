"""Random histories of everything that can happen to a few runs, and what must be true of them after each step.

Processes claim, work, commit twice, commit with tokens they held long ago, die, come back and are reclaimed, while
clients enqueue, steer and cancel. The server is a real Valkey and the scripts are real; nothing is fake. A failure is
repeated by its seed.
"""

import random
from collections import Counter

import pytest

from factorial.errors import InactiveTaskError
from factorial.mailbox import Mailbox, lease, tend
from factorial.mailbox.claim import Claim, Token, claim
from factorial.mailbox.commit import Action, Commit, Committed, commit
from factorial.mailbox.enqueue import enqueue
from factorial.mailbox.lease import Cause
from factorial.mailbox.post import cancel, post
from factorial.mailbox.read import read_run
from factorial.mailbox.step import step
from tests.redis.invariants import assert_invariants

RUNS = [f"t{number}" for number in range(4)]
PROCESSES = ["p1", "p2"]


class History:
    """One random history: what was done, and what was answered."""

    def __init__(self, mailbox: Mailbox, seed: int) -> None:
        self.mailbox = mailbox
        self.scripts = mailbox.scripts
        self.random = random.Random(seed)
        self.tokens: list[tuple[str, str, Token]] = []
        """Every token that was ever given out: run, process, token."""
        self.cancelled: set[str] = set()
        self.posted: Counter[str] = Counter()
        self.enqueued: set[str] = set()

    async def happen(self) -> None:
        """One step of the history."""
        deeds = {
            self.enqueue: 2, self.claim: 5, self.work: 3, self.settle: 8, self.post: 2, self.cancel: 1, self.die: 1,
            self.lose_lease: 1, self.tend: 3,
        }  # fmt: skip
        await self.random.choices(list(deeds), list(deeds.values()))[0]()

    async def enqueue(self) -> None:
        run = self.random.choice(RUNS)
        await enqueue(self.scripts, task_id=run, agent="a", owner_id="o", conversation=[b"{}"], fields={"query": b'""'})
        self.enqueued.add(run)

    async def claim(self) -> None:
        """As a process does it that took a wake token: it registers if it has to, and claims, now and then twice."""
        process, count, nonce = self.random.choice(PROCESSES), self.random.randint(0, 3), f"n{self.random.random()}"
        await self.mailbox.connection.execute("LPOP", self.mailbox.keys.wake("a"))
        for _ in range(self.random.randint(1, 3)):
            answer = await claim(
                self.scripts, process=process, worker="w", agent="a", count=count, recovery_limit=2, nonce=nonce
            )
            if not isinstance(answer, Claim):
                await self.register(process)
        if isinstance(answer, Claim):
            self.tokens += [(found.task_id, process, found.token) for found in answer.runs]
        else:
            await tend.promote(self.scripts, agent="a")  # it died with the token in hand

    async def register(self, process: str) -> None:
        await lease.register(self.scripts, process=process, agent="a", lease=60, patience=0, about={})

    async def work(self) -> None:
        if self.tokens:
            run, _, token = self.random.choice(self.tokens)
            entries = {f"tool:{self.random.randint(0, 2)}": b"{}"}
            await step(
                self.scripts, task_id=run, token=token, told=self.random.randint(1, 5), entries=entries, events=[]
            )

    async def settle(self) -> None:
        """Mostly with the latest token, sometimes with an old one; and sometimes twice."""
        if not self.tokens:
            return
        recent = self.random.random() < 0.7
        run, process, token = self.tokens[-1] if recent else self.random.choice(self.tokens)
        action = self.random.choice([Action.CONTINUE] * 4 + [a for a in Action if a is not Action.CANCEL])
        done = action in (Action.CONTINUE, Action.COMPLETE) or self.random.random() < 0.3
        event = b'{"event_type":"commit","run":"%s","seq":%d}' % (run.encode(), token.seq)
        work = Commit(action, turn_done=done, events=[event], messages=[b"m{}"])
        answers = [
            await commit(self.scripts, task_id=run, process=process, token=token, work=work)
            for _ in range(self.random.randint(1, 2))
        ]
        if isinstance(answers[0], Committed):
            assert isinstance(answers[-1], Committed) and answers[-1].action == answers[0].action
            if (run, process, token.next()) not in self.tokens:
                self.tokens.append((run, process, token.next()))

    async def post(self) -> None:
        run = self.random.choice(RUNS)
        if run in self.enqueued:
            message_id = f"{self.random.random()}"
            try:
                for _ in range(self.random.randint(1, 2)):
                    await post(self.scripts, task_id=run, message_id=message_id, messages=[b'{"steer":1}'])
                self.posted[run] += 1
            except InactiveTaskError:
                pass

    async def cancel(self) -> None:
        run = self.random.choice(RUNS)
        if run in self.enqueued:
            try:
                await cancel(self.scripts, task_id=run)
                self.cancelled.add(run)
            except InactiveTaskError:
                pass

    async def die(self) -> None:
        process, cause = self.random.choice(PROCESSES), self.random.choice([Cause.CRASHED] * 3 + list(Cause))
        for _ in range(self.random.randint(1, 2)):
            await lease.bury(self.scripts, process=process, cause=cause)

    async def lose_lease(self) -> None:
        await self.mailbox.connection.execute("DEL", self.mailbox.keys.lease(self.random.choice(PROCESSES)))

    async def tend(self) -> None:
        await lease.reclaim(self.scripts, most=self.random.randint(1, 5))
        for run in RUNS:  # time passes: what is due, is due
            await self.mailbox.connection.execute("ZADD", self.mailbox.keys.prefix + "z:a", "XX", 1, run)
        await tend.promote(self.scripts, agent="a")

    async def end(self) -> None:
        """Let everything that is still under way come to its end."""
        for process in PROCESSES:
            await lease.bury(self.scripts, process=process, cause=Cause.LEFT)
        await self.register("p1")
        for _ in range(100):
            await self.tend()
            answer = await claim(self.scripts, process="p1", worker="w", agent="a", count=9, recovery_limit=2)
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
            if not answer.runs and answer.next_due is None:
                return
        raise AssertionError("it does not end")


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_happens_the_invariants_hold(mailbox: Mailbox, seed: int) -> None:
    history = History(mailbox, seed)
    namespace = mailbox.redis.namespace
    for number in range(120):
        await history.happen()
        if number % 2 == 0:
            await assert_invariants(mailbox.connection, namespace, quiet=True)
    await history.end()
    await assert_invariants(mailbox.connection, namespace, quiet=True)

    stored = await mailbox.connection.execute("XRANGE", mailbox.keys.events("o"), "-", "+")
    events = [parts[1] for _, parts in stored]
    commits = Counter(event for event in events if b'"event_type":"commit"' in event)
    assert all(count == 1 for count in commits.values()), "one accepted commit per run and number"
    for run in history.enqueued:
        found = await read_run(mailbox.scripts, run)
        assert found is not None and found.status.is_final
        if run in history.cancelled:
            assert found.status == "cancelled", "an accepted cancel ends as cancelled"
        messages = found.payload["messages"].count({"steer": 1})
        told = any(b'"run_steering_failed"' in event and run.encode() in event for event in events)
        assert messages <= history.posted[run]
        assert messages == history.posted[run] or (told and found.status != "completed"), "accepted steering is applied"
        ends = [event for event in events if b'"run_cancelled"' in event and run.encode() in event]
        assert len(ends) == (found.status == "cancelled")
    assert await mailbox.connection.execute("HGET", mailbox.keys.owner("o"), "active") in (None, b"0")
