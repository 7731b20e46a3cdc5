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

from factorial.cli.doctor import run_doctor
from factorial.cli.main import main
from factorial.config import RedisConfig
from factorial.errors import MailboxRefusedError
from factorial.mailbox import Namespace
from factorial.mailbox.doctor import rereading, wake
from factorial.mailbox.keys import LAYOUT_VERSION
from factorial.mailbox.operations import lease
from factorial.mailbox.operations.cancel import cancel
from factorial.mailbox.operations.claim import Claim, ClaimedRun, ClaimRequest, claim
from factorial.mailbox.operations.commit import Action, Commit, commit
from factorial.mailbox.operations.enqueue import enqueue
from factorial.mailbox.operations.spawn import ChildBatch, NewRun, spawn
from factorial.mailbox.operations.steer import steer
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
            ClaimRequest(process=process, worker="w", agent="a", count=count, recovery_limit=9, owner_limit=limit),
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
        await self.end_turn(parked, Action.PARK, plan=b"{}", awaits={"tool:c": 3600})
        child = NewRun("child", "b", [b"{}"], {})
        await spawn(self.mailbox.scripts, parent="parent", token=parent.token, batch=ChildBatch("f"), children=[child])
        await self.end_turn(parent, Action.PARK, plan=b"{}", awaits={"child:child": 3600})
        await self.enqueue("held", "held too", "cancelled")
        await cancel(self.mailbox.scripts, task_id="cancelled")
        await self.take(2)
        await self.enqueue("one", "throttled", "also throttled", owner="many")
        await self.take(3, limit=1)
        await self.enqueue("ready")
        await steer(self.mailbox.scripts, task_id="ready", message_id="m", messages=[b"{}"])

    async def diagnosis(self) -> dict[str, Any]:
        """What the doctor reports, as JSON."""
        self._capsys.readouterr()
        code = await run_doctor(self.mailbox.redis, as_json=True)
        report: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        assert code == (not report["well"])
        findings = [found for one in report["invariants"] for found in one["findings"]]
        for said in [*report["notes"], *(found["text"] for found in findings), *(found["fix"] for found in findings)]:
            assert re.fullmatch(r"[A-Z].*[.]", said) or said.startswith("namespace "), f"not a sentence: {said!r}"
            assert "{NAMESPACE" not in said
        return report

    async def findings(self) -> list[str]:
        """What is wrong, as '<number of the invariant>: <sentences>'."""
        invariants = (await self.diagnosis())["invariants"]
        return [f"{one['number']}: {found['text']}" for one in invariants for found in one["findings"]]


@pytest.fixture
async def patient(
    redis_url: str, namespace: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Patient]:
    """Nothing moves in it, so the doctor does not have to wait between two looks."""
    monkeypatch.setattr(rereading, "_PAUSE", 0.001)
    monkeypatch.setattr(wake, "_PAUSE", 0.001)
    mailbox = await Namespace.open(RedisConfig(url=redis_url, namespace=namespace))
    patient = Patient(mailbox, capsys)
    await patient.fill()
    yield patient
    await mailbox.close()


async def test_a_namespace_with_a_run_in_each_place_is_well(patient: Patient) -> None:
    report = await patient.diagnosis()
    assert report["well"] and [one["violations"] for one in report["invariants"]] == [0] * 10
    assert report["runs"]["a"] == {
        "backoff": 1, "cancelled": 1, "completed": 1, "pending_child_tasks": 1, "pending_tool_results": 1,
        "processing": 3, "queued": 3,
    }  # fmt: skip
    assert (report["owners"], report["processes"]) == (2, {"alive": 1, "without_lease": 0})
    [note] = [note for note in report["notes"] if note.startswith("Agent b")]
    assert note.startswith("Agent b has 1 ready run.") and "No living process works for this agent" in note


BROKEN: dict[str, tuple[str, list[str]]] = {
    # What is done to the data by hand, and what the doctor must report. `{x}` is the key of the kind and name x.
    "lost from the queue": ("LREM {ready:a} 0 ready", ["1: Run ready of agent a has the status queued, but it is in"]),
    "twice in the queue": (
        "RPUSH {ready:a} ready",
        ["1: Run ready of agent a has the status queued, but it is in the ready queue of agent a and"],
    ),
    "queued and held": (
        "SADD {held:p} ready",
        ["1: Run ready of agent a has the status queued, but it is in the ready queue of agent a and"],
    ),
    "held by nobody": (
        "SREM {held:p} held", ["1: Run held of agent a has the status processing, but it is in no place."],
    ),
    "held by two": (
        "SADD {held:q} held",
        ["1: Run held of agent a has the status processing, but it is in the runs held by process p and in"],
    ),
    "never due": ("ZREM {due:a} due", ["1: Run due of agent a has the status backoff, but it is in no place."]),
    "due of another agent": (
        "ZADD {due:z} 1 due",
        ["1: Run due of agent a has the status backoff, but it is in the due runs of agent a and in the"],
    ),
    "not parked": ("SREM {parked:a} parked", ["1: Run parked of agent a has the status pending_tool_results, but"]),
    "ended in two ways": (
        "ZADD {ended:a:failed} 1 completed",
        ["1: Run completed of agent a has the status completed, but it is in the ended runs of"],
    ),
    "an unregistered process": (
        "ZREM {processes} p", ["1: Run held is held by process p, which is not registered"] * 3,
    ),
    "an unknown status": ("HSET {run:ready} status lost", ["1: Run ready has the status 'lost'"]),
    "a hash of nothing": ("HSET {run:odd} x y", ["10: Run odd does not exist, but its hash is still stored."]),
    "a commit too many": (
        "HINCRBY {run:completed} seq 1",
        ["2: Run completed is at epoch 1 and sequence number 2, but its last commit was made at epoch 1 and sequence"],
    ),
    "a commit of another claim": (
        "HSET {run:parked} nonce other",
        ["2: Run parked was claimed with the nonce other, but its last commit in the same epoch has"],
    ),
    "parked without a commit": (
        "HSET {run:due} status pending_child_tasks",
        ["1: Run due of agent a has the status pending_child_tasks", "2: Run due is pending_child_tasks at epoch 1,"],
    ),
    "owner's count": (
        "HINCRBY {owner:o} active 1", ["3: Owner o has 7 active runs, but the stored count is 8."],
    ),
    "owner's count gone": ("DEL {owner:many}", ["3: Owner many has 3 active runs, but no count is stored."]),
    "owner's held runs": (
        "HINCRBY {running:a} o 5", ["3: Owner o has 2 held runs of agent a, but the stored count is 7."],
    ),
    "no wake token": ("DEL {wake:a}", ["4: Agent a has 1 ready run, but no wake token."]),
    "a cancel forgotten": (
        "HSET {run:ready} cancel_requested 1", ["5: Run ready was to be cancelled, but its status is queued."],
    ),
    "cancelled, and completed": (
        "HSET {run:completed} cancel_requested 1", ["5: Run completed was to be cancelled, but its status is"],
    ),
    "mail unread": (
        "RPUSH {mail:completed} x",
        ["5: Run completed is completed, but steering that it accepted was neither read nor answered."],
    ),
    "an early result lost": (
        "HSET {journal:parked} delivered:tool:c 1",
        ["6: Run parked awaits tool:c, whose result arrived before the run parked and was lost."],
    ),
    "a wrong number of awaits": (
        "HSET {awaits:parked} open 2",
        ["6: Run parked is parked and stores 2 as the number of things that it awaits, but it awaits 1: tool:c."],
    ),
    "a deadline forgotten": (
        "ZREM {due:a} parked",
        ["6: Run parked awaits something with a deadline, but it is not in the due runs of agent a."],
    ),
    "an awaited child that has ended": (
        "HSET {run:child} status cancelled ended_at 1", ["7: Run parent awaits its child child, which has ended."],
    ),
    "a child unlisted": (
        "DEL {children:parent}",
        ["7: Run child has the status queued and is not listed among the active children of run parent"],
    ),
    "a batch miscounted": (
        "HINCRBY {batch:f} ended 1",
        ["7: Batch f counts 1 run, 1 of them ended and 1 active, but it has 1 stored run, 0 of them ended."],
    ),
    "ended twice": (
        'XADD {events:o} * e {"event_type":"run_failed","task_id":"completed"}',
        ["8: Run completed has the status completed, but its events report: completed and failed."],
    ),
    "an end that did not happen": (
        'XADD {events:o} * e {"event_type":"run_completed","task_id":"ready"}',
        ["8: Run ready has the status queued, but its events report: completed."],
    ),
    "a wrong suspect": (
        "HSET {claims:p} suspect ready", ["9: Run ready has the status queued and is not a suspect, but it is noted"],
    ),
    "more crashes than recoveries": (
        "HSET {run:ready} crashes 1", ["9: Run ready counts 1 crashes and 0 strikes, but was reclaimed only 0 times."],
    ),
    "no suspect, and a token passed on": (
        "SADD {passed:a} p", ["9: Process p passed a wake token of agent a on, but it holds no suspect."],
    ),
    "a journal left": (
        "HSET {journal:completed} x y", ["10: Run completed has ended, but its journal is still stored."],
    ),
    "a conversation left": (
        "RPUSH {conversation:gone} x", ["10: Run gone does not exist, but its conversation is still stored."],
    ),
    "a run deleted": (
        "DEL {run:held}", ["10: Run held does not exist, but it is still in the runs held by process p."],
    ),
    "a queue of another type": ("SET {ready:c} x", ["1: Key"]),
    "counts of another type": ("SET {running:c} x", ["10: Key"]),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
async def test_what_is_broken_is_reported(patient: Patient, what: str) -> None:
    command, expected = BROKEN[what]
    await patient.do(*patient.with_keys(command).split(" "))
    findings = await patient.findings()
    for wanted in expected:
        assert any(finding.startswith(wanted) for finding in findings), findings


async def test_throttled_runs_that_never_become_ready(patient: Patient) -> None:
    """The run whose end would make the next one ready is gone, with all that is stored of it."""
    await patient.do("DEL", patient.keys.run("one"), patient.keys.conversation("one"))
    await patient.do("SREM", patient.keys.held("p"), "one")
    await patient.do("HDEL", patient.keys.key("running", "a"), "many")
    await patient.do("HSET", patient.keys.owner("many"), "active", 2)
    assert await patient.findings() == [
        "4: Owner many has 2 throttled runs of agent a, but no ready or held run whose end would make one of them "
        "ready."
    ]


async def test_each_finding_says_what_can_be_done(patient: Patient) -> None:
    await patient.do("LREM", patient.keys.ready("a"), 0, "ready")
    [found] = (await patient.diagnosis())["invariants"][0]["findings"]
    assert "Cancel the task, and enqueue its work again." in found["fix"]


async def after_the_fix(patient: Patient, number: int) -> list[str]:
    """Execute the command that the first finding of this invariant advises, and return the findings after it."""
    [found, *_] = (await patient.diagnosis())["invariants"][number - 1]["findings"]
    command = re.search(r"`(.*?)`", found["fix"])
    assert command, found
    await patient.do(*shlex.split(command[1]))
    return await patient.findings()


async def test_a_held_run_that_is_lost_is_released_after_the_fix(patient: Patient) -> None:
    await patient.do("SREM", patient.keys.held("p"), "held")
    assert await after_the_fix(patient, 1) == []
    assert await lease.release(patient.mailbox.scripts, process="p", task_ids=["held"]) == ["held"]
    assert await patient.findings() == []


async def test_what_an_unregistered_process_holds_is_reclaimed_after_the_fix(patient: Patient) -> None:
    await patient.do("ZREM", patient.keys.key("processes"), "p")
    assert await after_the_fix(patient, 1) == []
    await patient.do("DEL", patient.keys.lease("p"))

    async def reclaimed() -> list[str]:
        return list((await lease.reclaim(patient.mailbox.scripts, most=9)).go_on)

    # The first one notes that the lease is missing; patience lasts a millisecond.
    assert set(await wait_until(reclaimed)) == {"held", "held too", "one"}


async def test_throttled_runs_become_ready_after_the_fix(patient: Patient) -> None:
    """The count says that one of the owner's runs is held, and none is: another task alone would be throttled, too."""
    await patient.do("DEL", patient.keys.run("one"), patient.keys.conversation("one"))
    await patient.do("SREM", patient.keys.held("p"), "one")
    await patient.do("HSET", patient.keys.owner("many"), "active", 2)
    assert any("throttled" in finding for finding in await after_the_fix(patient, 4))
    await patient.enqueue("another", owner="many")
    another = next(run for run in await patient.take(9, limit=9) if run.task_id == "another")
    await patient.end_turn(another, Action.COMPLETE)
    assert await patient.findings() == []


async def test_a_wrong_count_of_held_runs_is_right_after_the_fix(patient: Patient) -> None:
    await patient.do("HINCRBY", patient.keys.key("running", "a"), "o", 5)
    assert await after_the_fix(patient, 3) == []
    await patient.do("HSET", patient.keys.key("running", "a"), "nobody", 1)
    assert await after_the_fix(patient, 3) == []


async def test_a_namespace_without_its_layout_version_is_not_an_empty_one(
    patient: Patient, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is one whose version was overwritten. The message is one line, with the command that restores it."""
    restore = f"HSET {patient.keys.layout} version {LAYOUT_VERSION}"
    await patient.do("DEL", patient.keys.layout)
    assert await asyncio.to_thread(main, ["doctor", *where(patient)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "has keys, but no layout version" in line and restore in line
    await patient.do("SET", patient.keys.layout, "x")
    assert await asyncio.to_thread(main, ["doctor", *where(patient)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"DEL {patient.keys.layout}, then {restore}" in line
    with pytest.raises(MailboxRefusedError, match="overwritten by a key of another type"):
        await Namespace.open(patient.mailbox.redis)
    await patient.do("DEL", patient.keys.layout)
    await patient.do(*restore.split())
    assert await patient.findings() == []


async def test_for_people_the_findings_of_an_invariant_are_bounded(
    patient: Patient, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(30):
        await patient.do("HSET", patient.keys.key("journal", f"gone{number}"), "x", "y")
    assert await run_doctor(patient.mailbox.redis) == 1
    printed = capsys.readouterr().out
    assert printed.count("does not exist, but its journal is still stored") == 10
    assert "and 20 more; --json has them" in printed
    assert "✓  1  every run is in exactly one" in printed and "✗ 10  an ended run keeps only" in printed
    assert printed.endswith("\n  violations: 30\n")


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
        assert await run_doctor(replace(patient.mailbox.redis, url=url)) == 1
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
    assert "Run held of agent a has the status processing, but it is in no place." in capsys.readouterr().out
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
def test_a_mistake_is_reported_in_one_line(
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


async def test_what_violates_nothing_but_matters_is_a_note(patient: Patient) -> None:
    await patient.do("DEL", patient.keys.lease("p"))
    await patient.do("RPUSH", patient.keys.key("doomed"), "child")
    await patient.do("HSET", patient.keys.awaits("parked"), "tool:c", "?0")
    report = await patient.diagnosis()
    assert report["well"] and report["processes"] == {"alive": 0, "without_lease": 1}
    for wanted in (
        r"^Agent a has 1 ready run\. The oldest was enqueued \d+ s ago\. No living process works for this agent",
        r"^Process p has no lease\. It holds 3 runs\.",
        r"^Parked runs that await something without a deadline: 1\.",
        r"^Runs that must still be cancelled, because their parents were: 1\.",
    ):
        assert any(re.search(wanted, note) for note in report["notes"]), report["notes"]


async def test_a_server_that_will_lose_tasks_is_noted(patient: Patient) -> None:
    await patient.do("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        report = await patient.diagnosis()
    finally:
        await patient.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert any("has maxmemory-policy allkeys-lru" in note for note in report["notes"])
    assert any("has no append-only file" in note for note in (await patient.diagnosis())["notes"])


async def test_ctrl_c(patient: Patient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("factorial.mailbox.visit.visiting", interrupted)
    assert await asyncio.to_thread(main, ["doctor", *where(patient)]) == 130
    assert capsys.readouterr().err == ""
