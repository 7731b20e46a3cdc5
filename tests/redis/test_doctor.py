"""`python -m factorial doctor`: each invariant is broken by hand, and the finding names what is broken.

Real: the Valkey, the scripts that have brought the runs where they are, the command's `main`. Nothing is fake, and
nothing moves; tests/chaos/test_fault_doctor.py asks while everything does.
"""

import asyncio
import json
import re
import shlex
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from factorial.__main__ import main
from factorial.config import RedisConfig
from factorial.doctor import examine
from factorial.errors import MailboxRefusedError
from factorial.mailbox import Namespace
from factorial.mailbox.doctor import doctor as checkup
from factorial.mailbox.keys import LAYOUT_VERSION
from factorial.mailbox.operations import lease
from factorial.mailbox.operations.claim import Claim, ClaimedRun, claim
from factorial.mailbox.operations.commit import Action, Commit, commit
from factorial.mailbox.operations.enqueue import enqueue
from factorial.mailbox.operations.spawn import NewRun, spawn
from factorial.mailbox.operations.steer import cancel, steer
from tests.support import wait_until

pytestmark = pytest.mark.broken


class Patient:
    """A namespace, and what the tests do there."""

    def __init__(self, mailbox: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
        self.mailbox, self.keys, self._capsys = mailbox, mailbox.keys, capsys

    async def do(self, *command: Any) -> Any:
        """One command to the server."""
        return await self.mailbox.connection.execute(*command)

    def with_keys(self, command: str) -> str:
        """`{ready:a}` is the key of the kind `ready` with the name `a`."""
        return re.sub(r"{(\w+):?([^}]*)}", lambda found: self.keys.key(found[1], found[2]), command)

    async def enqueue(self, *names: str, agent: str = "a", owner: str = "o") -> None:
        for name in names:
            await enqueue(
                self.mailbox.scripts, task_id=name, agent=agent, owner_id=owner, conversation=[b"{}"], fields={}
            )

    async def take(self, count: int = 1, process: str = "p", limit: int = 0) -> list[ClaimedRun]:
        await lease.register(self.mailbox.scripts, process=process, agent="a", lease=60, patience=0, about={})
        answer = await claim(
            self.mailbox.scripts,
            process=process,
            worker="w",
            agent="a",
            count=count,
            recovery_limit=9,
            owner_limit=limit,
        )
        assert isinstance(answer, Claim)
        return list(answer.runs)

    async def end_turn(self, run: ClaimedRun, action: Action, **more: Any) -> None:
        """The commit that a worker would make, with the event of the run's end."""
        if action is Action.COMPLETE:
            event = {"event_type": "run_completed", "task_id": run.task_id}
            more["final_events"] = [json.dumps(event, separators=(",", ":")).encode()]
        work = Commit(action, **{"turn_done": action is Action.COMPLETE} | more)
        await commit(self.mailbox.scripts, task_id=run.task_id, process="p", token=run.token, work=work)

    async def fill(self) -> None:
        """A run in each place: completed, cancelled, due, parked, held, ready; a child, and throttled ones."""
        await self.enqueue("completed", "due", "parked", "parent")
        done, due, parked, parent = await self.take(4)
        await self.end_turn(done, Action.COMPLETE)
        await self.end_turn(due, Action.BACKOFF, delay=3600, error="oh")
        await self.end_turn(parked, Action.PARK, plan=b"{}", awaited={"tool:c": 3600})
        child = NewRun("child", "b", [b"{}"], {})
        await spawn(self.mailbox.scripts, parent="parent", token=parent.token, batch_id="f", children=[child])
        await self.end_turn(parent, Action.PARK, plan=b"{}", awaited={"child:child": 3600})
        await self.enqueue("held", "held too", "cancelled")
        await cancel(self.mailbox.scripts, task_id="cancelled")
        await self.take(2)
        await self.enqueue("one", "throttled", "also throttled", owner="many")
        await self.take(3, limit=1)
        await self.enqueue("ready")
        await steer(self.mailbox.scripts, task_id="ready", message_id="m", messages=[b"{}"])

    async def diagnosis(self) -> dict[str, Any]:
        """What the doctor tells, as JSON."""
        self._capsys.readouterr()
        code = await examine(self.mailbox.redis, as_json=True)
        told: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        assert code == (not told["well"])
        return told

    async def findings(self) -> list[str]:
        """What is wrong, as '<number of the invariant>: <what>'."""
        invariants = (await self.diagnosis())["invariants"]
        return [
            f"{one['number']}: {found['subject']} {found['text']}" for one in invariants for found in one["findings"]
        ]


@pytest.fixture
async def patient(
    redis_url: str, namespace: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Patient]:
    """Nothing moves in it, so the doctor does not have to wait between two looks."""
    monkeypatch.setattr(checkup, "_PAUSE", 0.001)
    monkeypatch.setattr(checkup, "_TOKEN_PAUSE", 0.001)
    mailbox = await Namespace.open(RedisConfig(url=redis_url, namespace=namespace))
    patient = Patient(mailbox, capsys)
    await patient.fill()
    yield patient
    await mailbox.close()


async def test_a_namespace_with_a_run_in_each_place_is_well(patient: Patient) -> None:
    told = await patient.diagnosis()
    assert told["well"] and [one["violations"] for one in told["invariants"]] == [0] * 10
    assert told["runs"]["a"] == {
        "backoff": 1, "cancelled": 1, "completed": 1, "pending_child_tasks": 1, "pending_tool_results": 1,
        "processing": 3, "queued": 3,
    }  # fmt: skip
    assert (told["owners"], told["processes"]) == (2, {"alive": 1, "without_lease": 0})
    assert any(
        "ready runs of agent b: 1," in note and "no living process works for it" in note for note in told["notes"]
    )


BROKEN: dict[str, tuple[str, list[str]]] = {
    # What is done to the data, by hand, and what has to be found. `{x}` is the key of the kind and name x.
    "lost from the queue": ("LREM {ready:a} 0 ready", ["1: run ready of agent a is queued and found in no place"]),
    "twice in the queue": ("RPUSH {ready:a} ready", ["1: run ready of agent a is queued and found in ready of a and"]),
    "queued and held": ("SADD {held:p} ready", ["1: run ready of agent a is queued and found in ready of a and held"]),
    "held by nobody": ("SREM {held:p} held", ["1: run held of agent a is processing and found in no place"]),
    "held by two": ("SADD {held:q} held", ["1: run held of agent a is processing and found in held of p and held of"]),
    "never due": ("ZREM {due:a} due", ["1: run due of agent a is backoff and found in no place"]),
    "due of another agent": ("ZADD {due:z} 1 due", ["1: run due of agent a is backoff and found in due of a and due"]),
    "not parked": ("SREM {parked:a} parked", ["1: run parked of agent a is pending_tool_results and found in no"]),
    "ended in two ways": ("ZADD {ended:a:failed} 1 completed", ["1: run completed of agent a is completed and found"]),
    "a process unheard of": ("ZREM {processes} p", ["1: run held is held by process p, which has never"] * 3),
    "a status that is none": ("HSET {run:ready} status lost", ["1: run ready has the status 'lost'"]),
    "a hash of nothing": ("HSET {run:odd} x y", ["10: run odd is gone, and its hash is still there"]),
    "a commit too many": ("HINCRBY {run:completed} seq 1", ["2: run completed is at epoch 1 and seq 2, and its last"]),
    "a commit of another claim": ("HSET {run:parked} nonce other", ["2: run parked was claimed as other"]),
    "a park that was none": ("HSET {run:due} status pending_child_tasks", ["1: run due", "2: run due is pending_"]),
    "owner's count": ("HINCRBY {owner:o} active 1", ["3: owner o has 7 runs that have not ended, and the count says"]),
    "owner's count gone": ("DEL {owner:many}", ["3: owner many has 3 runs that have not ended"]),
    "owner's held runs": ("HINCRBY {running:a} o 5", ["3: owner o has 2 runs of a held, and the count says 7"]),
    "no wake token": ("DEL {wake:a}", ["4: agent a has 1 runs ready, and there is no wake token"]),
    "a cancel forgotten": ("HSET {run:ready} cancel_requested 1", ["5: run ready is to be cancelled, and is queued"]),
    "cancelled, and completed": (
        "HSET {run:completed} cancel_requested 1", ["5: run completed is to be cancelled, and is"],
    ),
    "mail unread": ("RPUSH {mail:completed} x", ["5: run completed is completed, and steering that it accepted was"]),
    "an early result lost": (
        "HSET {journal:parked} delivered:tool:c 1", ["6: run parked waits for tool:c, whose result"],
    ),
    "waits for nothing": ("HSET {awaits:parked} open 2", ["6: run parked is parked for 2 of open things, and waits"]),
    "a deadline forgotten": ("ZREM {due:a} parked", ["6: run parked waits for things with a deadline, and is not due"]),
    "a child not told of": (
        "HSET {run:child} status cancelled ended_at 1", ["7: run parent waits for its child child, which has ended"],
    ),
    "a child unlisted": ("DEL {children:parent}", ["7: run child is queued and is not listed among the living"]),
    "a batch miscounted": ("HINCRBY {batch:f} ended 1", ["7: batch f says that of its 1 runs 1 have ended"]),
    "ended twice": (
        'XADD {events:o} * e {"event_type":"run_failed","task_id":"completed"}',
        ["8: run completed is completed, and its events tell of its end: completed and"],
    ),
    "an end untold": (
        'XADD {events:o} * e {"event_type":"run_completed","task_id":"ready"}', ["8: run ready is queued, and"],
    ),
    "a suspect unknown": ("HSET {claims:p} suspect ready", ["9: run ready is queued and no suspect, and noted as the"]),
    "more crashes than recoveries": ("HSET {run:ready} crashes 1", ["9: run ready was taken back 0 times"]),
    "room, and a token passed on": ("SADD {passed:a} p", ["9: process p passed on a wake token of a, and has room"]),
    "a journal left": ("HSET {journal:completed} x y", ["10: run completed has ended, and its journal is still there"]),
    "a conversation left": ("RPUSH {conversation:gone} x", ["10: run gone is gone, and its conversation is still"]),
    "a run deleted": ("DEL {run:held}", ["10: run held is gone, and still stands in held of p"]),
    "a queue of another type": ("SET {ready:c} x", ["1: key"]),
    "counts of another type": ("SET {running:c} x", ["10: key"]),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
async def test_what_is_broken_is_found_and_named(patient: Patient, what: str) -> None:
    command, expected = BROKEN[what]
    await patient.do(*patient.with_keys(command).split(" "))
    findings = await patient.findings()
    for wanted in expected:
        assert any(finding.startswith(wanted) for finding in findings), findings


async def test_throttled_runs_that_nobody_lets_in(patient: Patient) -> None:
    """The one run that would let them in is gone, with all that is said of it."""
    await patient.do("DEL", patient.keys.run("one"), patient.keys.conversation("one"))
    await patient.do("SREM", patient.keys.held("p"), "one")
    await patient.do("HDEL", patient.keys.key("running", "a"), "many")
    await patient.do("HSET", patient.keys.owner("many"), "active", 2)
    assert await patient.findings() == [
        "4: owner many has 2 throttled runs of a, and none that is held or ready and would let them in"
    ]


async def test_each_finding_says_what_can_be_done(patient: Patient) -> None:
    await patient.do("LREM", patient.keys.ready("a"), 0, "ready")
    [found] = (await patient.diagnosis())["invariants"][0]["findings"]
    assert "cancel it, and enqueue its work again" in found["mend"]


async def mended(patient: Patient, number: int) -> list[str]:
    """Give the command that the first finding of this invariant advises, and tell what is still wrong."""
    [found, *_] = (await patient.diagnosis())["invariants"][number - 1]["findings"]
    command = re.search(r"(SADD|ZADD|HSET|HDEL) .*?(?=[:,] )", found["mend"])
    assert command, found
    await patient.do(*shlex.split(command[0]))
    return await patient.findings()


async def test_a_held_run_that_is_lost_is_given_back_after_the_advice(patient: Patient) -> None:
    await patient.do("SREM", patient.keys.held("p"), "held")
    assert await mended(patient, 1) == []
    assert await lease.disown(patient.mailbox.scripts, process="p", task_ids=["held"]) == ["held"]
    assert await patient.findings() == []


async def test_what_a_process_unheard_of_holds_is_taken_back_after_the_advice(patient: Patient) -> None:
    await patient.do("ZREM", patient.keys.key("processes"), "p")
    assert await mended(patient, 1) == []
    await patient.do("DEL", patient.keys.lease("p"))

    async def taken_back() -> list[str]:
        return list((await lease.reclaim(patient.mailbox.scripts, most=9)).go_on)

    # The first one notes that the lease is missing; patience lasts a millisecond.
    assert set(await wait_until(taken_back)) == {"held", "held too", "one"}


async def test_throttled_runs_are_let_in_after_the_advice(patient: Patient) -> None:
    """The count says that one of the owner's runs is held, and none is: another task alone would be throttled, too."""
    await patient.do("DEL", patient.keys.run("one"), patient.keys.conversation("one"))
    await patient.do("SREM", patient.keys.held("p"), "one")
    await patient.do("HSET", patient.keys.owner("many"), "active", 2)
    assert any("throttled" in finding for finding in await mended(patient, 4))
    await patient.enqueue("another", owner="many")
    another = next(run for run in await patient.take(9, limit=9) if run.task_id == "another")
    await patient.end_turn(another, Action.COMPLETE)
    assert await patient.findings() == []


async def test_a_wrong_count_of_held_runs_is_right_after_the_advice(patient: Patient) -> None:
    await patient.do("HINCRBY", patient.keys.key("running", "a"), "o", 5)
    assert await mended(patient, 3) == []
    await patient.do("HSET", patient.keys.key("running", "a"), "nobody", 1)
    assert await mended(patient, 3) == []


async def test_a_layout_that_is_gone_is_no_empty_namespace(
    patient: Patient, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is one that was overwritten; either is told in a line, with what puts it back. A mailbox tells the second."""
    put_back = f"HSET {patient.keys.layout} version {LAYOUT_VERSION}"
    await patient.do("DEL", patient.keys.layout)
    assert await asyncio.to_thread(main, ["doctor", *where(patient)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "has keys, but no layout version" in line and put_back in line
    await patient.do("SET", patient.keys.layout, "x")
    assert await asyncio.to_thread(main, ["doctor", *where(patient)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"DEL {patient.keys.layout}, then {put_back}" in line
    with pytest.raises(MailboxRefusedError, match="overwritten by a key of another type"):
        await Namespace.open(patient.mailbox.redis)
    await patient.do("DEL", patient.keys.layout)
    await patient.do(*put_back.split())
    assert await patient.findings() == []


async def test_for_people_the_findings_of_an_invariant_are_bounded(
    patient: Patient, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(30):
        await patient.do("HSET", patient.keys.key("journal", f"gone{number}"), "x", "y")
    assert await examine(patient.mailbox.redis) == 1
    told = capsys.readouterr().out
    assert told.count("is gone, and its journal is still there") == 10
    assert "and 20 more; --json has them" in told
    assert "✓  1  every run is in exactly one place" in told and "✗ 10  of runs that have ended" in told
    assert told.endswith("\n  violations: 30\n")


async def test_it_only_reads(patient: Patient) -> None:
    """A user of the server who may use nothing but commands that read, and none on scripts, is enough."""
    await patient.do(
        "ACL",
        "SETUSER",
        "doctor",
        "on",
        ">pass",
        f"~{patient.keys.prefix}*",
        "-@all",
        "+@read",
        "+@connection",
        "+time",
        "+info",
    )
    await patient.do("RPUSH", patient.keys.conversation("gone"), "x")  # so that it has something to look at again
    url = patient.mailbox.redis.url.replace("unix://", "unix://doctor:pass@")
    try:
        assert await examine(replace(patient.mailbox.redis, url=url)) == 1
        assert await patient.do("ACL", "LOG") == []
    finally:
        await patient.do("ACL", "DELUSER", "doctor")


def where(patient: Patient) -> list[str]:
    return ["--redis", patient.mailbox.redis.url, "--namespace", patient.mailbox.redis.namespace]


async def test_the_command(patient: Patient, capsys: pytest.CaptureFixture[str]) -> None:
    """Its exit code says how the system is."""
    assert await asyncio.to_thread(main, ["doctor", *where(patient)]) == 0
    assert "all is well" in capsys.readouterr().out
    await patient.do("SREM", patient.keys.held("p"), "held")
    assert await asyncio.to_thread(main, ["doctor", *where(patient)]) == 1
    assert "run held of agent a is processing and found in no place" in capsys.readouterr().out
    assert await asyncio.to_thread(main, ["doctor", "--json", "--quick", *where(patient)]) == 1
    assert json.loads(capsys.readouterr().out)["invariants"][0]["violations"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["doctor", "--namespace", "no-such-one"], 2, "nothing was ever stored in namespace 'no-such-one'"),
        (["doctor", "--namespace", "a b"], 2, "use 1 to 64 letters"),
        (["doctor", "--config", "x.toml", "--namespace", "a"], 2, "leave --redis and --namespace out"),
        (["doctor", "--config", "no-such.toml"], 2, "there is no such file"),
        (["doctor", "--redis", "redis://localhost:1"], 1, "nothing listens there"),
        (["doctor", "--redis", "embedded:./not-there"], 2, "embedded:./not-there: there is no such directory"),
        (["doctor", "--redis", "embedded:."], 1, "its server is not running. Start the system"),
        (["doctor", "--quik"], 2, "--quik; see factorial doctor --help"),
        (["doctor", "--redis", ""], 2, "factorial: --redis: begin it with redis://"),
        (["doctor", "--redis", "db1:6379"], 2, "factorial: --redis: begin it with"),
        (["nurse"], 2, "'nurse'"),
        ([], 2, "VERB"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], code: int, named: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("REDIS_URL", redis_url)
    assert main(arguments) == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("factorial: ") and named in line


async def test_another_layout_is_not_judged(patient: Patient, capsys: pytest.CaptureFixture[str]) -> None:
    await patient.do("HSET", patient.keys.layout, "version", 99)
    assert await asyncio.to_thread(main, ["doctor", *where(patient)]) == 1
    assert "has layout 99" in capsys.readouterr().err


async def test_what_is_allowed_and_worth_knowing_is_a_note(patient: Patient) -> None:
    await patient.do("DEL", patient.keys.lease("p"))
    await patient.do("RPUSH", patient.keys.key("doomed"), "child")
    await patient.do("HSET", patient.keys.awaits("parked"), "tool:c", "?0")
    told = await patient.diagnosis()
    assert told["well"] and told["processes"] == {"alive": 0, "without_lease": 1}
    for wanted in (
        r"ready runs of agent a: 1, the oldest enqueued \d+ s ago; no living process works for it",
        "process p has no lease; runs that it holds: 3",
        "without a deadline, for what has not come: 1",
        "still to be cancelled together with those that spawned them: 1",
    ):
        assert any(re.search(wanted, note) for note in told["notes"]), told["notes"]


async def test_a_server_that_will_lose_tasks_is_noted(patient: Patient) -> None:
    await patient.do("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        told = await patient.diagnosis()
    finally:
        await patient.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert any("has maxmemory-policy allkeys-lru" in note for note in told["notes"])
    assert any("has no append-only file" in note for note in (await patient.diagnosis())["notes"])


async def test_ctrl_c(patient: Patient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("factorial.doctor.visiting", interrupted)
    assert await asyncio.to_thread(main, ["doctor", *where(patient)]) == 130
    assert capsys.readouterr().err == ""
