"""Each script twice with the same arguments has the same answer and the same state: every command may be sent again.

The server is a real Valkey and the scripts are real; nothing is fake. Nothing moves but what the test calls.
"""

import json
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from factorial._core.json import load_json
from factorial.errors import InactiveTaskError, MailboxFullError, TaskNotFoundError
from factorial.mailbox import Namespace
from factorial.mailbox.keys import KINDS
from factorial.mailbox.operations import lease, upkeep
from factorial.mailbox.operations.cancel import Cancelled, cancel
from factorial.mailbox.operations.claim import Claim, ClaimedRun, ClaimRequest, NoLease, Token, claim, new_nonce
from factorial.mailbox.operations.commit import Action, Commit, Committed, EntryMissing, commit
from factorial.mailbox.operations.deliver import deliver
from factorial.mailbox.operations.enqueue import enqueue
from factorial.mailbox.operations.lease import Cause
from factorial.mailbox.operations.record import Accepted, Superseded, record
from factorial.mailbox.operations.spawn import ChildBatch, NewRun, spawn
from factorial.mailbox.operations.steer import steer
from factorial.mailbox.views.read import read_run, read_status
from factorial.task import TaskStatus
from tests.redis.stored import Contents, contents

MAILBOX = Path(str(files("factorial.mailbox")))

ALONE = "crash_loop: 3 processes died with no other task to blame, and the task finished no step in between"
USER = b'{"role":"user","content":"hello"}'
FIELDS = {"query": b'"hello"', "turn": b"0", "output": b"null"}


async def put(mailbox: Namespace, task_id: str = "t1", owner_id: str = "o", agent: str = "a") -> bool:
    return await enqueue(
        mailbox.scripts, task_id=task_id, agent=agent, owner_id=owner_id, conversation=[USER], fields=FIELDS
    )


async def register(mailbox: Namespace, process: str = "p", seconds: float = 60.0, patience: float = 0.0) -> set[str]:
    return await lease.register(
        mailbox.scripts, process=process, agent="a", lease=seconds, patience=patience, about={"pid": 1}
    )


async def take(mailbox: Namespace, process: str = "p", count: int = 10, limit: int = 3) -> list[ClaimedRun]:
    answer = await claim(
        mailbox.scripts, ClaimRequest(process=process, worker="w", agent="a", count=count, recovery_limit=limit)
    )
    assert isinstance(answer, Claim)
    return list(answer.runs)


async def taken(mailbox: Namespace) -> ClaimedRun:
    """A run that the process `p` holds."""
    await register(mailbox)
    await put(mailbox)
    [run] = await take(mailbox)
    return run


async def do(mailbox: Namespace, token: Token, action: Action, **work: Any) -> Committed | Superseded | EntryMissing:
    work = {"turn_done": True} | work
    return await commit(mailbox.scripts, task_id="t1", process="p", token=token, work=Commit(action=action, **work))


async def note(mailbox: Namespace, token: Token, number: int = 1, **what: Any) -> Accepted | Superseded:
    what = {"entries": {"completion": b"{}"}, "events": [b'{"event_type":"e","task_id":"t1"}']} | what
    return await record(mailbox.scripts, task_id="t1", token=token, message_number=number, **what)


async def state(mailbox: Namespace) -> Contents:
    return await contents(mailbox.connection, mailbox.redis.namespace)


async def event_types(mailbox: Namespace, owner_id: str = "o") -> list[str]:
    stored = await mailbox.connection.execute("XRANGE", mailbox.keys.events(owner_id), "-", "+")
    return [json.loads(parts[1])["event_type"] for _, parts in stored]


async def same_twice(mailbox: Namespace, call: Callable[[], Awaitable[Any]]) -> Any:
    """Call twice. Fail unless answer and state are the same. Returns the answer."""
    first = await call()
    after_first = await state(mailbox)
    second = await call()
    assert second == first
    assert await state(mailbox) == after_first
    return first


# -- twice is once


async def test_enqueue_twice_is_once(mailbox: Namespace) -> None:
    assert await put(mailbox)
    stored = await state(mailbox)
    assert not await put(mailbox)
    other = await enqueue(mailbox.scripts, task_id="t1", agent="a", owner_id="o", conversation=[], fields={})
    assert not other
    assert await state(mailbox) == stored
    assert stored["ready"] == {"a": ["t1"]} and stored["owner"]["o"]["active"] == "1"
    assert await event_types(mailbox) == ["run_enqueued"]


async def test_enqueue_of_a_run_that_ended_is_refused_too(mailbox: Namespace) -> None:
    """An id is one run as long as the run is stored: a late retry of the enqueue does not start it again."""
    run = await taken(mailbox)
    await do(mailbox, run.token, Action.COMPLETE)
    assert not await put(mailbox)
    assert await read_status(mailbox.scripts, "t1") == TaskStatus.COMPLETED


async def test_claim_again_with_the_same_nonce_gives_the_same_runs(mailbox: Namespace) -> None:
    """The answer to the first was lost: no other process can execute what it claimed."""
    await register(mailbox)
    for name in ("t1", "t2", "t3"):
        await put(mailbox, name)
    first, second = [await mailbox.scripts.run("claim", "p", "w", "a", 2, "nonce", 3, 0) for _ in range(2)]
    assert [run[0] for run in first[2]] == [b"t1", b"t2"]
    assert sorted(run[0] for run in second[2]) == [b"t1", b"t2"]
    assert sorted(run[1] for run in first[2]) == sorted(run[1] for run in second[2])
    assert (await event_types(mailbox)).count("run_started") == 2
    third = await mailbox.scripts.run("claim", "p", "w", "a", 2, "another", 3, 0)
    assert [run[0] for run in third[2]] == [b"t3"]


async def test_a_claim_that_found_nothing_finds_nothing_when_repeated_and_leaves_the_token(mailbox: Namespace) -> None:
    await register(mailbox)
    for _ in range(2):
        assert (await mailbox.scripts.run("claim", "p", "w", "a", 2, "nonce", 3, 0))[2] == []
        await put(mailbox)
        assert await mailbox.connection.execute("LLEN", mailbox.keys.wake("a")) == 1


async def test_register_twice_is_once(mailbox: Namespace) -> None:
    await taken(mailbox)
    assert await same_twice(mailbox, lambda: register(mailbox)) == {"t1"}


async def test_record_twice_is_once(mailbox: Namespace) -> None:
    run = await taken(mailbox)
    assert await same_twice(mailbox, lambda: note(mailbox, run.token)) == Accepted(cancelled=False)
    assert (await event_types(mailbox)).count("e") == 1
    await note(mailbox, run.token, number=2, entries={"completion": b"later", "tool:1": b"{}"})
    assert (await state(mailbox))["journal"]["t1"] == {"completion": "{}", "tool:1": "{}"}  # the first one counts


@pytest.mark.parametrize("arrived", [True, False])
async def test_events_of_an_unanswered_record_are_published_once_with_the_commit(
    mailbox: Namespace, arrived: bool
) -> None:
    """The client does not know whether the record arrived, so the commit carries its events, too."""
    run = await taken(mailbox)
    event, later = b'{"event_type":"e","task_id":"t1"}', b'{"event_type":"later","task_id":"t1"}'
    if arrived:
        await note(mailbox, run.token, number=1, events=[event])
    await do(mailbox, run.token, Action.COMPLETE, events=[event, later], unanswered=1, unanswered_events=1)
    types = await event_types(mailbox)
    assert (types.count("e"), types.count("later")) == (1, 1)


@pytest.mark.parametrize(
    ("action", "status"),
    [
        (Action.CONTINUE, "processing"),
        (Action.COMPLETE, "completed"),
        (Action.BACKOFF, "backoff"),
        (Action.RELEASE, "queued"),
        (Action.FAIL, "failed"),
        (Action.CANCEL, "cancelled"),
    ],
)
async def test_commit_twice_is_once(mailbox: Namespace, action: Action, status: str) -> None:
    run = await taken(mailbox)
    await note(mailbox, run.token, entries={"message:tool:1": b'{"role":"tool"}'})

    def send() -> Awaitable[Any]:
        return do(
            mailbox, run.token, action, messages=[b'm{"role":"assistant"}', b"jmessage:tool:1"],
            fields={"turn": b"1"}, events=[b'{"event_type":"turn","task_id":"t1"}'], delay=5.0, error="oh",
            final_fields={"output": b'"done"'}, final_events=[b'{"event_type":"end","task_id":"t1"}'],
        )  # fmt: skip

    assert await same_twice(mailbox, send) == Committed(action, [])
    stored = await read_run(mailbox.scripts, "t1")
    assert stored is not None
    assert stored.status == status
    assert [message["role"] for message in map(load_json, stored.conversation)] == ["user", "assistant", "tool"]
    carried_out = action not in (Action.CONTINUE, Action.CANCEL)
    assert stored.fields["turn"] == b"1"
    assert load_json(stored.fields["output"]) == ("done" if carried_out else None)
    types = await event_types(mailbox)
    assert types.count("turn") == 1 and types.count("end") == carried_out
    assert types.count("run_cancelled") == (action is Action.CANCEL)


async def test_steer_twice_is_once(mailbox: Namespace) -> None:
    await put(mailbox)
    await same_twice(mailbox, lambda: steer(mailbox.scripts, task_id="t1", message_id="m", messages=[b"1", b"2"]))
    assert (await state(mailbox))["mail"]["t1"] == ["1", "2"]


async def test_cancel_twice_is_once(mailbox: Namespace) -> None:
    await put(mailbox)
    assert await cancel(mailbox.scripts, task_id="t1") == Cancelled(TaskStatus.CANCELLED, ended_here=True)
    stored = await state(mailbox)
    assert await cancel(mailbox.scripts, task_id="t1") == Cancelled(TaskStatus.CANCELLED, ended_here=False)
    assert await state(mailbox) == stored
    assert await event_types(mailbox) == ["run_enqueued", "run_cancelled"]


async def test_cancel_of_a_held_run_twice_signals_its_holder(mailbox: Namespace) -> None:
    run = await taken(mailbox)
    for _ in range(2):
        assert await cancel(mailbox.scripts, task_id="t1") == Cancelled(TaskStatus.PROCESSING, ended_here=False)
    assert set((await state(mailbox))["signals"]["p"]) == {"cancel t1"}
    assert await note(mailbox, run.token) == Accepted(cancelled=True)
    assert await do(mailbox, run.token, Action.COMPLETE) == Committed(Action.CANCEL, [])
    assert await cancel(mailbox.scripts, task_id="t1") == Cancelled(TaskStatus.CANCELLED, ended_here=False)
    assert (await event_types(mailbox)).count("run_cancelled") == 1


async def test_what_is_reclaimed_is_reclaimed_once(mailbox: Namespace) -> None:
    await taken(mailbox)
    assert len((await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.KILLED)).go_on) == 1
    stored = await state(mailbox)
    assert len((await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.KILLED)).go_on) == 0
    assert len((await lease.reclaim(mailbox.scripts, most=10)).go_on) == 0
    assert await state(mailbox) == stored
    assert stored["ready"] == {"a": ["t1"]} and not stored["processes"] and not stored["held"]
    assert stored["run"]["t1"]["epoch"] == "2"  # late writes of the dead process are refused


async def test_expire_removes_the_run_and_all_that_belongs_to_it(mailbox: Namespace) -> None:
    run = await taken(mailbox)
    await do(mailbox, run.token, Action.COMPLETE)

    def remove() -> Awaitable[int]:
        return upkeep.expire(mailbox.scripts, agent="a", status=TaskStatus.COMPLETED, ttl=0, most=10)

    assert await upkeep.expire(mailbox.scripts, agent="a", status=TaskStatus.COMPLETED, ttl=60, most=10) == 0
    assert await remove() == 1
    stored = await state(mailbox)
    assert await remove() == 0
    assert await state(mailbox) == stored
    assert not {kind for kind, names in stored.items() if names and (KINDS[kind].is_of_run or kind == "ended")}
    with pytest.raises(TaskNotFoundError):
        await cancel(mailbox.scripts, task_id="t1")


async def test_expire_goes_on_until_nothing_is_left(mailbox: Namespace) -> None:
    for number in range(25):
        await put(mailbox, f"t{number}")
        await cancel(mailbox.scripts, task_id=f"t{number}")
    assert await upkeep.expire(mailbox.scripts, agent="a", status=TaskStatus.CANCELLED, ttl=0, most=10) == 25


# -- fencing: an old token writes nothing


STALE = ["committed", "reclaimed", "claimed again", "claimed by the same request", "rolled back", "cancelled"]


async def stale(mailbox: Namespace, how: str) -> Token:
    """A token that was valid before."""
    run = await taken(mailbox)
    if how == "committed":
        await do(mailbox, run.token, Action.CONTINUE)
        await do(mailbox, run.token.next(), Action.CONTINUE)
    elif how == "reclaimed":
        await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.KILLED)
    elif how == "claimed again":
        await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.KILLED)
        await register(mailbox, "p2")
        await take(mailbox, "p2")
    elif (
        how == "claimed by the same request"
    ):  # it was sent twice, and the second copy arrived after the process was reclaimed
        await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.KILLED)
        await register(mailbox)
        await mailbox.scripts.run("claim", "p", "w", "a", 1, run.token.nonce, 3, 0)
    elif how == "rolled back":  # a failover: another claim has the same epoch
        await mailbox.connection.execute("HSET", mailbox.keys.run("t1"), "nonce", "another")
    elif how == "cancelled":
        await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.KILLED)
        await cancel(mailbox.scripts, task_id="t1")
    return run.token


@pytest.mark.parametrize("how", STALE)
@pytest.mark.parametrize("action", list(Action))
async def test_a_commit_with_an_old_token_changes_nothing(mailbox: Namespace, how: str, action: Action) -> None:
    token = await stale(mailbox, how)
    before = await state(mailbox)
    answer = await do(
        mailbox, token, action, messages=[b"m{}"], rewrite=True, fields={"x": b"1"},
        events=[b'{"event_type":"e"}'], final_events=[b'{"event_type":"e"}'],
    )  # fmt: skip
    assert isinstance(answer, Superseded)
    assert await state(mailbox) == before


@pytest.mark.parametrize("how", STALE[1:])
async def test_a_record_with_an_old_token_changes_nothing(mailbox: Namespace, how: str) -> None:
    token = await stale(mailbox, how)
    before = await state(mailbox)
    assert isinstance(await note(mailbox, token, number=99), Superseded)
    assert await state(mailbox) == before


@pytest.mark.parametrize("how", STALE[1:])
async def test_spawn_with_an_old_token_changes_nothing(mailbox: Namespace, how: str) -> None:
    token = await stale(mailbox, how)
    before = await state(mailbox)
    children = [NewRun("c1", "a", [USER], FIELDS)]
    answer = await spawn(mailbox.scripts, parent="t1", token=token, batch=ChildBatch("b"), children=children)
    assert isinstance(answer, Superseded)
    assert await state(mailbox) == before


async def test_a_record_of_the_turn_before_changes_nothing(mailbox: Namespace) -> None:
    """It was sent before the commit, and its second copy arrives after the commit."""
    run = await taken(mailbox)
    await do(mailbox, run.token, Action.CONTINUE)
    before = await state(mailbox)
    assert await note(mailbox, run.token) == Accepted(cancelled=False)
    assert await state(mailbox) == before


async def test_a_process_without_a_lease_claims_nothing(mailbox: Namespace) -> None:
    await put(mailbox)
    answer = await claim(mailbox.scripts, ClaimRequest(process="p", worker="w", agent="a", count=1, recovery_limit=3))
    assert isinstance(answer, NoLease)
    assert not await lease.beat(mailbox.scripts, process="p", lease=1.0)


# -- order, wake tokens, due runs


async def test_runs_are_claimed_in_the_order_of_their_enqueueing(mailbox: Namespace) -> None:
    await register(mailbox)
    for number in range(5):
        await put(mailbox, f"t{number}")
    assert [run.task_id for run in await take(mailbox, count=3)] == ["t0", "t1", "t2"]
    assert [run.task_id for run in await take(mailbox, count=3)] == ["t3", "t4"]


async def test_a_claim_passes_the_wake_token_on_while_work_remains(mailbox: Namespace) -> None:
    await register(mailbox)
    for number in range(3):
        await put(mailbox, f"t{number}")
    tokens = mailbox.keys.wake("a")
    assert await mailbox.connection.execute("LLEN", tokens) == 1
    await mailbox.connection.execute("LPOP", tokens)
    await take(mailbox, count=2)
    assert await mailbox.connection.execute("LLEN", tokens) == 1
    await mailbox.connection.execute("LPOP", tokens)
    await take(mailbox, count=2)
    assert await mailbox.connection.execute("LLEN", tokens) == 0


async def test_a_released_run_is_first_in_the_queue(mailbox: Namespace) -> None:
    run = await taken(mailbox)
    await put(mailbox, "t2")
    await do(mailbox, run.token, Action.RELEASE, turn_done=False)
    runs = await take(mailbox)
    assert [run.task_id for run in runs] == ["t1", "t2"]
    assert [run.retries for run in runs] == [0, 0]  # a release is not a failure


async def test_a_run_in_backoff_is_claimed_when_it_is_due_and_not_before(mailbox: Namespace) -> None:
    run = await taken(mailbox)
    await do(mailbox, run.token, Action.BACKOFF, turn_done=False, delay=30.0, error="oh")
    answer = await claim(mailbox.scripts, ClaimRequest(process="p", worker="w", agent="a", count=1, recovery_limit=3))
    assert isinstance(answer, Claim)
    assert answer.runs == [] and answer.next_due is not None and 29 < answer.next_due <= 30
    assert await upkeep.promote(mailbox.scripts, agent="a") == 0
    await mailbox.connection.execute("ZADD", mailbox.keys.prefix + "due:a", 1, "t1")
    assert await upkeep.promote(mailbox.scripts, agent="a") == 1
    assert await upkeep.promote(mailbox.scripts, agent="a") == 0
    [again] = await take(mailbox)
    assert (again.retries, again.pickups) == (1, 2)


async def test_a_queued_run_that_was_cancelled_is_not_claimed(mailbox: Namespace) -> None:
    await register(mailbox)
    for name in ("t1", "t2", "t3"):
        await put(mailbox, name)
    await cancel(mailbox.scripts, task_id="t1")
    await cancel(mailbox.scripts, task_id="t3")
    assert [run.task_id for run in await take(mailbox)] == ["t2"]


# -- the journal


async def test_the_journal_outlives_the_holder_and_ends_with_the_turn(mailbox: Namespace) -> None:
    run = await taken(mailbox)
    await note(mailbox, run.token, entries={"completion": b"1"})
    await do(mailbox, run.token, Action.BACKOFF, turn_done=False, entries={"tool:1": b"2"})
    await mailbox.connection.execute("ZADD", mailbox.keys.prefix + "due:a", 1, "t1")
    [again] = await take(mailbox)
    assert again.journal == {"completion": b"1", "tool:1": b"2"}
    await do(mailbox, again.token, Action.CONTINUE)
    assert not (await state(mailbox))["journal"]


async def test_a_commit_that_names_an_unknown_journal_entry_changes_nothing(mailbox: Namespace) -> None:
    run = await taken(mailbox)
    before = await state(mailbox)
    answer = await do(mailbox, run.token, Action.COMPLETE, messages=[b"m{}", b"jnothing"], fields={"x": b"1"})
    assert isinstance(answer, EntryMissing)
    assert await state(mailbox) == before


async def test_a_rewritten_conversation_replaces_the_old_one(mailbox: Namespace) -> None:
    run = await taken(mailbox)
    await do(mailbox, run.token, Action.CONTINUE, messages=[b'm{"n":1}', b'm{"n":2}'])
    await do(mailbox, run.token.next(), Action.CONTINUE, messages=[b'm{"n":3}'], rewrite=True)
    assert (await state(mailbox))["conversation"]["t1"] == ['{"n":3}']


async def test_thousands_of_messages_and_fields_fit_in_one_commit(mailbox: Namespace) -> None:
    """Lua's `unpack` is bounded; the lists are written in parts."""
    run = await taken(mailbox)
    messages = [b'm{"n":%d}' % number for number in range(3001)]
    fields = {f"f{number}": b"%d" % number for number in range(3001)}
    await do(mailbox, run.token, Action.COMPLETE, messages=messages, fields=fields, rewrite=True)
    stored = await read_run(mailbox.scripts, "t1")
    assert stored is not None
    assert [message["n"] for message in map(load_json, stored.conversation)] == list(range(3001))
    assert stored.fields["f3000"] == b"3000"


async def test_the_wake_token_of_a_dead_process_is_restored(mailbox: Namespace) -> None:
    await register(mailbox)
    await put(mailbox)
    await mailbox.connection.execute("LPOP", mailbox.keys.wake("a"))
    await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.KILLED)
    assert (await state(mailbox))["wake"] == {"a": ["1"]}


async def test_publish_twice_is_once(mailbox: Namespace) -> None:
    event = b'{"event_type":"e","task_id":"t1"}'
    answers = [await mailbox.scripts.run("publish", "o", "m1", event) for _ in range(2)]
    assert answers == [[b"OK"], [b"DUP"]]
    assert await event_types(mailbox) == ["e"]


@pytest.mark.parametrize("parked", [False, True])
async def test_a_result_is_accepted_once(mailbox: Namespace, parked: bool) -> None:
    """Of several results, the first is accepted: before the run has parked, or after."""
    run = await taken(mailbox)
    await note(mailbox, run.token, entries={"expected:tool:c1": b"1"})
    park = {"plan": b"[]", "awaits": {"tool:c1": 0.0, "tool:c2": 0.0}}
    if parked:
        await do(mailbox, run.token, Action.PARK, **park)
    accepted = [await deliver(mailbox.scripts, task_id="t1", tool_call_id="c1", result=b"%d" % n) for n in (1, 2)]
    assert accepted == [True, False]
    if not parked:
        await do(mailbox, run.token, Action.PARK, **park)
    assert (await state(mailbox))["awaits"]["t1"] == {"plan": "[]", "tool:c1": "!1", "tool:c2": "?0", "open": "1"}


# -- mail


async def test_a_completion_with_unread_mail_becomes_another_turn(mailbox: Namespace) -> None:
    """The mail enters the conversation after the turn's messages, in the same script. A lost answer is repeated."""
    run = await taken(mailbox)
    await steer(mailbox.scripts, task_id="t1", message_id="m", messages=[b"1", b"2"])

    def complete() -> Awaitable[Any]:
        return do(
            mailbox,
            run.token,
            Action.COMPLETE,
            messages=[b"m{}"],
            final_fields={"output": b"1"},
            final_events=[b'{"event_type":"run_completed"}'],
        )

    assert await same_twice(mailbox, complete) == Committed(Action.CONTINUE, [b"1", b"2"])
    assert (await state(mailbox))["conversation"]["t1"] == [USER.decode(), "{}", "1", "2"]
    assert (await state(mailbox))["fields"]["t1"]["output"] == "null"
    types = await event_types(mailbox)
    assert "run_completed" not in types and types[-1] == "run_steering_applied"
    assert await do(mailbox, run.token.next(), Action.COMPLETE) == Committed(Action.COMPLETE, [])


@pytest.mark.parametrize("parked", [False, True], ids=["continue", "resume"])
async def test_a_lost_answer_is_not_repeated_to_a_process_that_was_reclaimed_meanwhile(
    mailbox: Namespace, parked: bool
) -> None:
    """Another process has the next turn, and the mail that has arrived since."""
    run = await taken(mailbox)
    await steer(mailbox.scripts, task_id="t1", message_id="m", messages=[b"1"])
    action = Action.PARK if parked else Action.CONTINUE
    await do(mailbox, run.token, action, **({"plan": b"[]", "awaits": {"child:none": 0.0}} if parked else {}))
    await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.KILLED)
    await steer(mailbox.scripts, task_id="t1", message_id="m2", messages=[b"2"])
    await register(mailbox, "p2")
    await take(mailbox, "p2")
    before = await state(mailbox)
    assert isinstance(await do(mailbox, run.token, action), Superseded)
    assert await state(mailbox) == before


async def test_mail_is_read_when_the_run_is_claimed(mailbox: Namespace) -> None:
    await register(mailbox)
    await put(mailbox)
    await steer(mailbox.scripts, task_id="t1", message_id="m", messages=[b"1"])
    [run] = await take(mailbox)
    assert run.conversation == [USER, b"1"]
    assert (await event_types(mailbox))[-1] == "run_steering_applied"


async def test_mail_is_not_read_before_a_turn_that_has_begun_is_finished(mailbox: Namespace) -> None:
    """The model has answered in that turn without it."""
    run = await taken(mailbox)
    await note(mailbox, run.token)
    await do(mailbox, run.token, Action.RELEASE, turn_done=False)
    await steer(mailbox.scripts, task_id="t1", message_id="m", messages=[b"1"])
    [again] = await take(mailbox)
    assert (again.conversation, again.journal) == ([USER], {"completion": b"{}"})
    answer = await do(mailbox, again.token, Action.COMPLETE, messages=[b"m{}"])
    assert answer == Committed(Action.CONTINUE, [b"1"])


async def test_unread_mail_is_answered_when_the_run_fails(mailbox: Namespace) -> None:
    run = await taken(mailbox)
    await steer(mailbox.scripts, task_id="t1", message_id="m", messages=[b"1"])
    await do(mailbox, run.token, Action.FAIL, turn_done=False, error="oh")
    assert (await event_types(mailbox))[-1] == "run_steering_failed"


async def test_a_full_mailbox_and_an_ended_run_accept_no_mail(mailbox: Namespace) -> None:
    await put(mailbox)
    await steer(mailbox.scripts, task_id="t1", message_id="m", messages=[b"1"] * 1000)
    with pytest.raises(MailboxFullError, match="1000 steering messages"):
        await steer(mailbox.scripts, task_id="t1", message_id="m2", messages=[b"2"])
    await cancel(mailbox.scripts, task_id="t1")
    with pytest.raises(InactiveTaskError, match="has ended"):
        await steer(mailbox.scripts, task_id="t1", message_id="m3", messages=[b"2"])
    with pytest.raises(TaskNotFoundError):
        await steer(mailbox.scripts, task_id="t2", message_id="m3", messages=[b"2"])


# -- dead processes


async def test_a_missing_lease_is_noted_first_and_reclaimed_after_the_patience(mailbox: Namespace) -> None:
    await register(mailbox, patience=30.0)
    await put(mailbox)
    await take(mailbox)
    await mailbox.connection.execute("DEL", mailbox.keys.lease("p"))
    for _ in range(3):
        assert len((await lease.reclaim(mailbox.scripts, most=10)).go_on) == 0
    await register(mailbox, patience=30.0)  # it lives: the note is removed
    assert (await state(mailbox))["processes"][""] == {"p": "0"}
    await mailbox.connection.execute("DEL", mailbox.keys.lease("p"))
    assert len((await lease.reclaim(mailbox.scripts, most=10)).go_on) == 0
    await mailbox.connection.execute("ZADD", mailbox.keys.prefix + "processes", 1, "p")  # as if it had been long ago
    assert len((await lease.reclaim(mailbox.scripts, most=10)).go_on) == 1


async def test_reclaiming_goes_on_in_parts_until_nothing_is_left(mailbox: Namespace) -> None:
    await register(mailbox)
    for number in range(23):
        await put(mailbox, f"t{number}")
    await take(mailbox, count=23)
    await mailbox.connection.execute("DEL", mailbox.keys.lease("p"))
    await mailbox.connection.execute("ZADD", mailbox.keys.prefix + "processes", 1, "p")
    assert len((await lease.reclaim(mailbox.scripts, most=5)).go_on) == 23
    assert not (await state(mailbox))["held"]


async def test_a_run_whose_holders_die_again_and_again_fails(mailbox: Namespace) -> None:
    """It is ready at once, then it backs off, then it fails as crash_loop: its processes held nothing else."""
    await put(mailbox)
    for status in ("queued", "backoff", "failed"):
        await mailbox.connection.execute("ZADD", mailbox.keys.prefix + "due:a", "XX", 1, "t1")
        await register(mailbox)
        assert len(await take(mailbox)) == 1
        await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.CRASHED)
        assert await read_status(mailbox.scripts, "t1") == status
    stored = await read_run(mailbox.scripts, "t1")
    assert stored is not None
    assert stored.error == ALONE
    assert (await event_types(mailbox)).count("task_reclaimed") == 2
    assert (await event_types(mailbox))[-1] == "run_failed"


async def test_a_finished_turn_resets_recoveries_and_retries(mailbox: Namespace) -> None:
    await taken(mailbox)
    await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.KILLED)
    await register(mailbox)
    [run] = await take(mailbox)
    await do(mailbox, run.token, Action.BACKOFF, turn_done=False)
    stored = (await state(mailbox))["run"]["t1"]
    assert (stored["recoveries"], stored["retries"]) == ("1", "1")
    await mailbox.connection.execute("ZADD", mailbox.keys.prefix + "due:a", 1, "t1")
    [run] = await take(mailbox)
    await do(mailbox, run.token, Action.CONTINUE)
    stored = (await state(mailbox))["run"]["t1"]
    assert not stored.keys() & {"recoveries", "retries"}


async def test_a_cancelled_run_whose_holder_dies_ends_as_cancelled(mailbox: Namespace) -> None:
    await taken(mailbox)
    await cancel(mailbox.scripts, task_id="t1")
    await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.KILLED)
    assert await read_status(mailbox.scripts, "t1") == "cancelled"
    assert (await event_types(mailbox))[-1] == "run_cancelled"


async def test_other_processes_keep_what_they_hold(mailbox: Namespace) -> None:
    await register(mailbox, "p1")
    await register(mailbox, "p2")
    await put(mailbox, "t1")
    await put(mailbox, "t2")
    await take(mailbox, "p1", count=1)
    await take(mailbox, "p2", count=1)
    assert len((await lease.reclaim_process(mailbox.scripts, process="p1", cause=Cause.KILLED)).go_on) == 1
    stored = await state(mailbox)
    assert stored["held"] == {"p2": {"t2"}} and stored["lease"].keys() == {"p2"}


async def test_a_run_in_the_set_of_a_dead_process_is_reclaimed_only_from_its_holder(mailbox: Namespace) -> None:
    await taken(mailbox)
    await register(mailbox, "dead")
    await mailbox.connection.execute("SADD", mailbox.keys.held("dead"), "t1")  # as after a failover
    assert (await lease.reclaim_process(mailbox.scripts, process="dead", cause=Cause.KILLED)).go_on == []
    stored = await state(mailbox)
    assert stored["run"]["t1"]["holder"] == "p" and stored["held"] == {"p": {"t1"}}


# -- the server forgets its scripts; time


async def test_scripts_are_sent_again_after_the_server_has_lost_them(mailbox: Namespace) -> None:
    await put(mailbox, "t1")
    await mailbox.connection.execute("SCRIPT", "FLUSH")
    await put(mailbox, "t2")
    await put(mailbox, "t3")
    assert (await state(mailbox))["ready"] == {"a": ["t1", "t2", "t3"]}


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_399_999, "2000-02-28T23:59:59.999Z"),
        (951_782_400_001, "2000-02-29T00:00:00.001Z"),
        (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
        (1_735_689_599_050, "2024-12-31T23:59:59.050Z"),
        (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
    ],
)
async def test_the_scripts_write_dates_as_iso_8601(mailbox: Namespace, ms: int, shown: str) -> None:
    """Lua has no calendar, so the script computes the date."""
    text = MAILBOX.joinpath("lib/time.lua").read_text() + "return iso(tonumber(ARGV[1]))"
    assert (await mailbox.connection.execute("EVAL", text, 0, ms)).decode() == shown


def test_every_script_documents_its_arguments_and_answers() -> None:
    """A header per script: purpose, arguments, answers."""
    scripts = [file for file in MAILBOX.glob("*/*.lua") if file.parent.name != "lib"]
    assert len(scripts) >= 11
    for file in scripts:
        text = file.read_text(encoding="utf-8")
        assert text.startswith("#!lua") and "\n-- ARGV" in text and "-- Answers" in text, file.name


async def test_an_old_claim_that_arrives_late_claims_nothing(mailbox: Namespace) -> None:
    """Its answer is lost: the process would hold runs that it does not know."""
    await register(mailbox)
    await put(mailbox, "t1")
    older, newer = new_nonce(), new_nonce()
    for nonce, expected in ((older, 1), (newer, 0), (older, 0)):
        if nonce == newer:
            await put(mailbox, "t2")
            await mailbox.connection.execute("LPOP", mailbox.keys.ready("a"))  # nothing is ready for the newer one
        answer = await claim(
            mailbox.scripts, ClaimRequest(process="p", worker="w", agent="a", count=1, recovery_limit=3, nonce=nonce)
        )
        assert isinstance(answer, Claim) and len(answer.runs) == expected
        if nonce == newer:
            await mailbox.connection.execute("LPUSH", mailbox.keys.ready("a"), "t2")
    await mailbox.connection.execute("LPUSH", mailbox.keys.wake("a"), "1")
