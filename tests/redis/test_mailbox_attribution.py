"""Which run is blamed for the death of a process, which is not, and how suspects are separated.

The server is a real Valkey and the scripts are real; nothing is fake. Nothing moves but what the test calls; time
passes when the test says so (`Scene.pass_time`).
"""

import asyncio
import json
import random
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import pytest

from factorial.mailbox import Namespace
from factorial.mailbox.operations import lease, upkeep
from factorial.mailbox.operations.cancel import cancel
from factorial.mailbox.operations.claim import Claim, ClaimedRun, ClaimRequest, Token, claim, new_nonce
from factorial.mailbox.operations.commit import Action, Commit, Committed, commit
from factorial.mailbox.operations.enqueue import enqueue
from factorial.mailbox.operations.lease import Cause
from factorial.mailbox.operations.record import Accepted, record
from factorial.mailbox.views.read import StoredRun, read_run
from tests.redis.doctor import assert_invariants
from tests.redis.stored import Contents, contents


class Scene:
    """A namespace and its processes."""

    def __init__(self, mailbox: Namespace) -> None:
        self.mailbox = mailbox
        self.scripts = mailbox.scripts
        self.tokens: dict[str, tuple[str, Token]] = {}
        """The holder of a run, and its token."""
        self.held: dict[str, set[str]] = {}
        """By process."""
        self.turns: Counter[str] = Counter()

    async def put(self, *names: str) -> None:
        """Enqueue these runs."""
        for name in names:
            await enqueue(self.scripts, task_id=name, agent="a", owner_id="o", conversation=[b"{}"], fields={})

    async def start(self, *processes: str) -> None:
        """Register processes."""
        for process in processes:
            await lease.register(self.scripts, process=process, agent="a", lease=600, patience=0, about={})

    async def claims(self, process: str, count: int = 100, nonce: str = "") -> list[ClaimedRun]:
        """Claim for the process."""
        answer = await claim(
            self.scripts,
            ClaimRequest(
                process=process, worker="w", agent="a", count=count, recovery_limit=3, nonce=nonce or new_nonce()
            ),
        )
        assert isinstance(answer, Claim)
        self.tokens |= {run.task_id: (process, run.token) for run in answer.runs}
        self.held.setdefault(process, set()).update(run.task_id for run in answer.runs)
        return list(answer.runs)

    async def take(self, process: str, count: int = 100, nonce: str = "") -> set[str]:
        """Claim for the process, and return the names of the runs."""
        return {run.task_id for run in await self.claims(process, count, nonce)}

    async def die(self, process: str, cause: Cause = Cause.CRASHED) -> int:
        """The process dies and is reclaimed; another one of its name registers."""
        taken = await lease.reclaim_process(self.scripts, process=process, cause=cause)
        self.held.pop(process, None)
        await assert_invariants(self.mailbox.connection, self.mailbox.redis.namespace, quiet=True, end_events=False)
        await self.start(process)
        return len(taken.go_on) + len(taken.given_up)

    async def finish_step(self, name: str, told: int = 1, entries: Iterable[str] = ("completion",)) -> None:
        """The run's holder records a step."""
        epoch = self.tokens[name][1].epoch  # a new step each time: a recorded one is not recorded again
        noted = await record(
            self.scripts, task_id=name, token=self.tokens[name][1], message_number=told,
            entries={f"{entry} {epoch}": b"{}" for entry in entries}, events=[],
        )  # fmt: skip
        assert isinstance(noted, Accepted)

    async def settle(self, name: str, action: Action, *, done: bool = True, **work: Any) -> None:
        """The run's holder commits."""
        (process, token), commits = self.tokens[name], Commit(action, turn_done=done, **work)
        answer = await commit(self.scripts, task_id=name, process=process, token=token, work=commits)
        assert isinstance(answer, Committed)
        self.tokens[name] = (process, token.next())
        if answer.action is not Action.CONTINUE:
            self.held[process].discard(name)

    async def pass_time(self) -> None:
        """Make all runs in backoff due."""
        due = self.mailbox.keys.prefix + "due:a"
        for name in await self.mailbox.connection.execute("ZRANGE", due, 0, -1):
            await self.mailbox.connection.execute("ZADD", due, 1, name)
        await upkeep.promote(self.scripts, agent="a")

    async def stored(self) -> Contents:
        """Everything that is stored."""
        return await contents(self.mailbox.connection, self.mailbox.redis.namespace)

    async def counts(self, name: str) -> tuple[int, int, int]:
        """The run's recoveries, crashes and strikes."""
        key, names = self.mailbox.keys.run(name), ("recoveries", "crashes", "strikes")
        recoveries, crashes, strikes = await self.mailbox.connection.execute("HMGET", key, *names)
        return int(recoveries or 0), int(crashes or 0), int(strikes or 0)

    async def read(self, name: str) -> StoredRun:
        """The run."""
        run = await read_run(self.scripts, name)
        assert run is not None
        return run

    async def take_token(self) -> bool:
        """Take the wake token, if there is one."""
        return await self.mailbox.connection.execute("LPOP", self.mailbox.keys.wake("a")) is not None

    async def events(self, event_type: str) -> list[dict[str, Any]]:
        """The events of this type."""
        stored = await self.mailbox.connection.execute("XRANGE", self.mailbox.keys.events("o"), "-", "+")
        events = [json.loads(parts[1]) for _, parts in stored]
        return [event for event in events if event["event_type"] == event_type]

    async def active(self) -> int:
        """How many runs have not ended."""
        return int(await self.mailbox.connection.execute("HGET", self.mailbox.keys.owner("o"), "active"))

    async def get_on(self, names: Iterable[str], chance: random.Random, share: float) -> None:
        """Let so many of these runs finish a turn. Their third turn ends them."""
        lucky = [name for name in sorted(names) if chance.random() < share]
        await asyncio.gather(
            *(self.settle(name, Action.COMPLETE if self.turns[name] == 2 else Action.CONTINUE) for name in lucky)
        )
        self.turns.update(lucky)

    async def make_suspects(self, *names: str) -> None:
        """Let two processes crash that hold these runs and nothing else."""
        await self.put(*names)
        await self.start("first")
        for _ in range(2):
            assert await self.take("first") == set(names)
            await self.die("first")
        await self.pass_time()
        await lease.reclaim_process(self.scripts, process="first", cause=Cause.LEFT)


@pytest.fixture
def scene(mailbox: Namespace) -> Scene:
    return Scene(mailbox)


# -- what a death says


async def test_no_run_is_blamed_when_a_process_leaves(scene: Scene) -> None:
    await scene.put("t1", "t2")
    await scene.start("p")
    for _ in range(12):
        assert len(await scene.take("p")) == 2
        assert await scene.die("p", Cause.LEFT) == 2
        assert set((await scene.stored())["ready"]["a"]) == {"t1", "t2"}  # at once
    assert await scene.counts("t1") == (0, 0, 0)
    assert (await scene.events("task_reclaimed"))[-1]["data"] == {"process": "p", "cause": "left", "recoveries": 0}


@pytest.mark.parametrize(("cause", "crashes"), [(Cause.CRASHED, 1), (Cause.KILLED, 0)])
async def test_a_death_is_counted_once_for_each_of_several_runs_and_is_a_strike_for_none(
    scene: Scene, cause: Cause, crashes: int
) -> None:
    await scene.put("t1", "t2")
    await scene.start("p")
    await scene.take("p")
    await scene.put("t3")
    await scene.die("p", cause)
    before = await scene.stored()
    await scene.die("p", cause)  # reclaimed twice
    assert (await scene.stored()) == before
    assert await scene.counts("t1") == await scene.counts("t2") == (1, crashes, 0)
    assert before["ready"]["a"][2] == "t3", "a reclaimed run goes first"
    told = (await scene.events("task_reclaimed"))[-1]
    assert told["data"] == {"process": "p", "cause": str(cause), "recoveries": 1}


@pytest.mark.parametrize("cause", [Cause.CRASHED, Cause.KILLED])
async def test_a_run_whose_process_dies_three_times_while_it_holds_nothing_else_is_given_up(
    scene: Scene, cause: Cause
) -> None:
    await scene.put("t1")
    await scene.start("p")
    for strikes in (1, 2):
        await scene.take("p")
        await scene.die("p", cause)
        assert (await scene.counts("t1"))[2] == strikes
        await scene.pass_time()
    await scene.take("p")
    await scene.die("p", cause)
    run = await scene.read("t1")
    assert (run.status, run.retries, run.pickups) == ("failed", 0, 3)
    assert run.error == (
        "crash_loop: 3 processes died with no other task to blame, and the task finished no step in between"
    )
    assert [event["error"] for event in await scene.events("run_failed")] == [run.error]


async def test_the_last_run_that_is_reclaimed_in_parts_was_not_alone(scene: Scene) -> None:
    """One call reclaims a hundred runs."""
    await scene.put(*(f"t{number}" for number in range(101)))
    await scene.start("p")
    await scene.take("p", count=101)
    assert await scene.die("p", Cause.KILLED) == 101
    assert {await scene.counts(f"t{number}") for number in range(101)} == {(1, 0, 0)}


async def test_runs_that_die_together_again_and_again_are_given_up_in_the_end(scene: Scene) -> None:
    """Kills from outside blame no run. Twelve in a row, with pauses and without a finished step, end it."""
    await scene.put("t1", "t2")
    await scene.start("p")
    for number in range(12):
        assert await scene.take("p") == {"t1", "t2"}
        if number == 5:
            await scene.finish_step("t2")
        await scene.die("p", Cause.KILLED)
        await scene.pass_time()
    run = await scene.read("t1")
    assert run.status == "failed"
    assert run.error == (
        "crash_loop: 12 processes in a row died while they held the task, and it finished no step in between"
    )
    assert await scene.counts("t2") == (7, 0, 0)


async def test_runs_that_died_together_are_due_at_different_times(scene: Scene) -> None:
    names = [f"t{number}" for number in range(50)]
    await scene.put(*names)
    await scene.start("p")
    for recoveries in range(1, 12):
        assert len(await scene.take("p")) == 50
        now = int((await scene.mailbox.connection.execute("TIME"))[0]) * 1000
        await scene.die("p", Cause.KILLED)
        due = (await scene.stored())["due"].get("a", {})
        if recoveries <= 3:
            assert not due, "a kill from outside mostly has nothing to do with a run"
            continue
        pauses = sorted(int(at) - now for at in due.values())
        seconds = 1000 * min(2 ** (recoveries - 4), 64)
        assert 0.5 * seconds <= pauses[0] < 0.7 * seconds + 2000
        assert 1.3 * seconds < pauses[-1] <= 1.5 * seconds + 2000
        await scene.pass_time()


# -- suspects


async def test_suspects_are_executed_one_to_a_process_next_to_other_runs(scene: Scene) -> None:
    await scene.make_suspects("s1", "s2", "s3")
    await scene.start("p1", "p2")
    await scene.put("t1", "t2", "t3")
    assert len(await scene.take("p1", count=3, nonce="n")) == 3
    stored = await scene.stored()
    assert await scene.take("p1", count=3, nonce="n") == stored["held"]["p1"], "the answer was lost"
    assert await scene.stored() == stored
    assert len(stored["suspects"]["a"]) == 2
    assert await scene.take("p1") == {"t3"}, "as many others as it has slots for"
    assert len(await scene.take("p2")) == 1
    assert len((await scene.stored())["suspects"]["a"]) == 1


@pytest.mark.parametrize("how", ["step", "turn", "backoff with a step", "completed"])
async def test_a_finished_step_clears_the_blame_and_the_next_suspect_is_claimed(scene: Scene, how: str) -> None:
    await scene.make_suspects("s1", "s2")
    await scene.start("p")
    [suspect] = await scene.take("p")
    await scene.take_token()
    if how == "step":
        await scene.finish_step(suspect)
    elif how == "turn":
        await scene.settle(suspect, Action.CONTINUE)
    elif how == "completed":
        await scene.settle(suspect, Action.COMPLETE)
    else:
        await scene.settle(suspect, Action.BACKOFF, done=False, entries={"tool:1": b"{}"}, delay=60.0)
    assert await scene.counts(suspect) == (0, 0, 0)
    assert await scene.take_token(), "a token says that a suspect may be claimed"
    assert await scene.take("p") == {"s1", "s2"} - {suspect}


async def test_what_concerns_a_suspect_may_be_sent_twice(scene: Scene) -> None:
    """As after a lost reply: the claim, the record that clears the blame, the last reclaim."""
    await scene.make_suspects("s1", "s2")
    await scene.put("t1")
    await scene.start("p")
    for _ in range(2):
        held = await scene.take("p", nonce="n")
        assert len(held & {"s1", "s2"}) == 1 and "t1" in held
    [suspect] = held - {"t1"}
    await scene.finish_step(suspect)
    once = await scene.stored()
    await scene.finish_step(suspect)
    assert await scene.stored() == once
    [other] = await scene.take("p")
    for _ in range(3):
        await scene.die("p", Cause.CRASHED)
        once = await scene.stored()
        await scene.die("p", Cause.CRASHED)
        assert await scene.stored() == once
        await scene.pass_time()
        for name in await scene.take("p") - {other}:
            await scene.finish_step(name)
    assert (await scene.read(other)).status == "failed"
    assert len(await scene.events("run_failed")) == 1


@pytest.mark.parametrize("action", [Action.RELEASE, Action.BACKOFF])
async def test_a_suspect_that_leaves_its_process_without_a_finished_step_stays_one(
    scene: Scene, action: Action
) -> None:
    await scene.make_suspects("s1", "s2")
    await scene.start("p")
    [suspect] = await scene.take("p")
    await scene.finish_step(suspect, entries=())  # events, but no step
    await scene.take_token()
    await scene.settle(suspect, action, done=False)
    await scene.pass_time()
    assert (await scene.counts(suspect))[1] == 2
    assert await scene.take_token()
    assert await scene.take("p") == {"s1", "s2"} - {suspect}
    await scene.die("p", Cause.LEFT)
    assert set((await scene.stored())["suspects"]["a"]) == {"s1", "s2"}


async def test_a_crash_is_a_strike_for_the_suspect_and_not_for_its_neighbours(scene: Scene) -> None:
    await scene.make_suspects("s1", "s2")
    await scene.put("t1", "t2")
    await scene.start("p")
    held = await scene.take("p")
    [suspect] = held & {"s1", "s2"}
    [other] = {"s1", "s2"} - {suspect}
    await scene.die("p", Cause.KILLED)
    assert await scene.counts(suspect) == (3, 2, 0), "a kill from outside blames no run, as long as there are others"
    assert await scene.take("p") == {"t1", "t2", other}
    await scene.die("p", Cause.CRASHED)
    assert await scene.counts(suspect) == (3, 2, 0)
    assert await scene.counts(other) == (3, 3, 1)
    assert await scene.counts("t1") == await scene.counts("t2") == (2, 1, 0)


async def test_a_queued_suspect_is_cancelled_at_once(scene: Scene) -> None:
    await scene.make_suspects("s1", "s2")
    for _ in range(2):
        assert (await cancel(scene.scripts, task_id="s1")).status == "cancelled"
        stored = await scene.stored()
        assert stored["suspects"]["a"] == ["s2"]
    await scene.start("p")
    assert await scene.take("p") == {"s2"}


async def test_a_cancelled_suspect_leaves_its_place_to_the_next(scene: Scene) -> None:
    await scene.make_suspects("s1", "s2")
    await scene.start("p")
    [suspect] = await scene.take("p")
    assert (await cancel(scene.scripts, task_id=suspect)).status == "processing"
    await scene.settle(suspect, Action.RELEASE, done=False)
    assert (await scene.read(suspect)).status == "cancelled"
    assert await scene.take("p") == {"s1", "s2"} - {suspect}


# -- wake tokens of suspects


class Waiters:
    """Processes with free slots that wait for the token. The server serves them in turn."""

    def __init__(self, scene: Scene, *processes: str) -> None:
        self.scene = scene
        self.waiting = deque(processes)
        self.claims = 0
        self.taken: dict[str, set[str]] = {process: set() for process in processes}

    async def serve(self) -> None:
        """Until no process finds a token any more."""
        while await self.scene.take_token():
            process = self.waiting.popleft()
            self.taken[process] |= await self.scene.take(process)
            self.waiting.append(process)
            self.claims += 1
            assert self.claims < 100, "the token circulates"


@pytest.mark.parametrize("seed", range(10))
async def test_each_suspect_is_claimed_by_a_process_that_may_and_no_token_circulates(scene: Scene, seed: int) -> None:
    chance = random.Random(seed)
    await scene.make_suspects("s1", "s2", "s3", "s4", "s5", "s6")
    processes = ["p1", "p2", "p3"]
    await scene.start(*processes)
    waiters = Waiters(scene, *processes)
    await waiters.serve()
    assert sorted(map(len, waiters.taken.values())) == [1, 1, 1]
    assert waiters.claims <= 6
    for left in (2, 1, 0, 0):
        chance.shuffle(waiters.waiting)
        free = chance.choice([process for process, held in waiters.taken.items() if held])
        await scene.finish_step(waiters.taken[free].pop())
        waiters.claims = 0
        await waiters.serve()
        assert len((await scene.stored())["suspects"].get("a", [])) == left
        assert waiters.claims <= 4
        assert len(waiters.taken[free]) == (1 if left or sum(map(len, waiters.taken.values())) == 3 else 0)


async def test_a_token_that_no_process_can_use_is_dropped_until_one_can(scene: Scene) -> None:
    await scene.make_suspects("s1", "s2")
    await scene.start("p")
    await scene.take_token()
    [suspect] = await scene.take("p")
    assert await scene.take_token(), "another process may claim a suspect"
    for _ in range(3):
        assert not await scene.take("p")
        assert not await scene.take_token()
    await scene.put("t1")
    assert await scene.take_token()
    assert await scene.take("p") == {"t1"}
    assert not await scene.take_token()
    await scene.die("p", Cause.CRASHED)
    assert await scene.take_token()
    assert {"t1", "s1", "s2"} - {suspect} == await scene.take("p")


async def test_a_process_that_passed_a_token_on_passes_on_the_one_of_new_suspects(scene: Scene) -> None:
    await scene.make_suspects("s1", "s2")
    await scene.start("p1", "p2")
    while await scene.take_token():
        await scene.take("p1")
    [waiting] = (await scene.stored())["suspects"]["a"]
    await cancel(scene.scripts, task_id=waiting)
    await scene.make_suspects("s3", "s4")
    waiters = Waiters(scene, "p1", "p2")
    await waiters.serve()
    assert waiters.taken["p2"] and not waiters.taken["p1"]


async def test_a_process_without_a_free_slot_passes_the_token_on(scene: Scene) -> None:
    await scene.make_suspects("s1")
    await scene.start("p")
    await scene.take_token()
    assert not await scene.take("p", count=0)
    assert await scene.take_token()
    assert await scene.take("p") == {"s1"}


# -- a whole story


@pytest.mark.parametrize("seed", range(5))
async def test_a_culprit_among_thirty_is_found_and_its_neighbours_complete(scene: Scene, seed: int) -> None:
    """Three processes with eleven slots each. The one that holds the culprit crashes, mostly before others progress."""
    chance = random.Random(seed)
    names = ["culprit", *(f"t{number}" for number in range(30))]
    chance.shuffle(names)
    await scene.put(*names)
    processes = ["p1", "p2", "p3"]
    await scene.start(*processes)
    crashes = 0
    while await scene.active():
        await scene.pass_time()
        for process in processes:
            await scene.take(process, count=11 - len(scene.held.get(process, ())))
            held = scene.held[process]
            if "culprit" in held:
                crashes += 1
                assert crashes <= 5
                innocent = held - {"culprit"}
                await scene.die(process, Cause.CRASHED)
                assert all([(await scene.counts(name))[2] == 0 for name in innocent]), "no strike for a neighbour"
            else:
                await scene.get_on(held, chance, 0.2)
    found = await scene.read("culprit")
    assert found.status == "failed" and found.error.startswith("crash_loop: 3 processes")
    for name in set(names) - {"culprit"}:
        run = await scene.read(name)
        assert (run.status, run.retries) == ("completed", 0)
        assert await scene.counts(name) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(3))
async def test_a_storm_of_kills_ends_no_run(scene: Scene, seed: int) -> None:
    """Four processes, 200 runs of three turns, fifty kills from outside. Some runs progress in between, some do not."""
    chance = random.Random(seed)
    await scene.put(*(f"t{number}" for number in range(200)))
    processes = ["p1", "p2", "p3", "p4"]
    await scene.start(*processes)
    for kill in range(50):
        if kill % 7 == 0:  # the pauses are longer than the time between two kills
            await scene.pass_time()
        for process in processes:
            await scene.take(process)
        await scene.get_on(set().union(*scene.held.values()), chance, 0.05)
        await scene.die(chance.choice(processes), Cause.KILLED)
    assert await scene.active() > 50, "runs were active until the end"
    while await scene.active():
        await scene.pass_time()
        await scene.get_on(await scene.take("p1") | set().union(*scene.held.values()), chance, 0.5)
    assert {run["status"] for run in (await scene.stored())["run"].values()} == {"completed"}
    assert not await scene.events("run_failed")
