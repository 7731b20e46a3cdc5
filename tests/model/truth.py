"""What must be true after every request, whatever happened.

`Truth.observe` gets each request that the server has executed, its reply, and the whole namespace before and after it.
It keeps what follows from accepted requests (a run's conversation, its unread mail, the delivered results, accepted
cancels), and fails if the namespace, or the reply, is anything else:

    what was accepted    an enqueued run exists until it has ended; a commit's messages and events are stored once;
                         steering enters the conversation once, in order, or is refused as the run ends; a result is
                         accepted once, and the run gets it; a run that is to be cancelled ends as cancelled
    who may write        a record, commit or spawn under any token but the current one changes nothing, and neither does
                         a request that is executed again
    the life of a run    an epoch never falls; a conversation only grows, unless it is rewritten; an ended run does not
                         change; it ends for a known reason; its parent is notified in the same step
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from factorial.mailbox.keys import KINDS
from factorial.mailbox.operations.claim import Token
from factorial.mailbox.operations.commit import Action, Commit
from factorial.mailbox.places import BY_KIND, PLACES
from tests.model.servers import Contents
from tests.model.wire import Request

__all__ = ["FINAL", "Truth"]

FINAL = {"completed", "failed", "cancelled"}
_OWN = {kind for kind, about in KINDS.items() if about.is_of_run}
OF_RUNS = {*_OWN, *BY_KIND, "batch", "deferred", "doomed", "events", "owner", "running"}
"""The kinds of keys that a refused or repeated request must not change. The others are tokens, leases, signals."""
ONCE = {"enqueue", "enqueue_batch", "record", "commit", "spawn", "deliver", "steer"}
"""Requests that change nothing when they are executed again. Others may: a claim passes the wake token on."""


@dataclass
class Known:
    """What is known of a run."""

    conversation: list[str]
    mail: list[str] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)
    """By deferred call: the result that was accepted first."""
    to_be_cancelled: bool = False


class Truth:
    """All that is known of one namespace."""

    def __init__(self, owner_limit: int = 0) -> None:
        self.runs: dict[str, Known] = {}
        self.counted: Counter[str] = Counter()
        """Counts, for the figures."""
        self._owner_limit = owner_limit
        self._reclaimed: set[str] = set()
        """Processes that were reclaimed."""

    def observe(self, request: Request, reply: Any, before: Contents, after: Contents) -> None:
        """The server has executed `request`. Raises AssertionError if anything is not as it must be."""
        again = request.accepted is not None
        marks: Sequence[bytes] = ()
        match request.name:
            case "enqueue" if reply[0] == b"OK":
                self._enqueued(request, again, before)
            case "enqueue_batch" if reply[0] == b"OK":
                for run in request.facts["runs"]:
                    assert run.task_id in after["run"], f"{run.task_id} of a batch is not stored"
                    if run.task_id not in self.runs:
                        self.runs[run.task_id] = Known([message.decode() for message in run.conversation])
            case "cancel_batch" if reply[0] == b"OK":
                was, now = before["batch"][request.args[0]], after["batch"][request.args[0]]
                assert "cancel_requested" in now or was["ended"] == was["total"], f"{request.args[0]} goes on"
            case "claim" if reply[0] == b"OK":
                self._claimed(request, again, reply[2], before, after)
            case "record" | "spawn" | "commit":
                marks = self._written(request, reply, again, before, after)
            case "deliver" if reply[0] == b"OK":
                if not again:
                    run, call, _, result = request.args
                    results = self.runs[run].results
                    assert call not in results, f"a second result for {call} of {run} was accepted"
                    results[call] = result.decode()
            case "steer" if reply[0] == b"OK":
                if not again:
                    self.runs[request.args[0]].mail += [message.decode() for message in request.args[4:]]
            case "cancel" if reply[0] == b"OK":
                self.runs[request.args[0]].to_be_cancelled = True
            case "enqueue" | "enqueue_batch" | "cancel_batch" | "deliver" | "steer" | "cancel" | "claim":
                assert _same(before, after), f"{request.name} was refused ({reply[0].decode()}), and changed something"
        if again and request.name in ONCE:
            assert _same(before, after), (
                f"{request.name}, executed again, changed something:\n{_difference(before, after)}"
            )
            self.counted["duplicates refused"] += 1
        elif isinstance(reply, list) and reply[:1] == [b"OK"]:
            request.accepted = reply
        self._reclaimed |= before["claims"].keys() - after["claims"].keys()
        self._follow(request, before, after)
        self._marked(marks, before, after)

    # -- what the request was

    def _enqueued(self, request: Request, again: bool, before: Contents) -> None:
        run = request.args[0]
        assert not again and run not in before["run"], f"{run} was enqueued twice"
        self.runs[run] = Known([message.decode() for message in _listed(request.args, 3)])

    def _claimed(self, request: Request, again: bool, found: list[Any], before: Contents, after: Contents) -> None:
        process, nonce = request.args[0], request.args[4]
        for run, _, epoch, _, _, _, _, conversation, _, _, awaited, *_ in found:
            run = run.decode()
            was, is_now = before["run"][run], after["run"][run]
            if was.get("nonce") != nonce:
                # A reclaimed process may seem to be back for one lease, if its registration arrives once more.
                assert not again or process in self._reclaimed, (
                    f"a claim that was answered before claims {run}, and no process will execute it"
                )
                assert was["status"] not in FINAL | {"processing"}, f"{run} was claimed, and was {was['status']}"
                assert epoch == int(was.get("epoch", 0)) + 1
                if self._owner_limit:
                    running = [
                        other for other in after["run"].values()
                        if other["status"] == "processing" and other["owner"] == is_now["owner"]
                    ]  # fmt: skip
                    assert len(running) <= self._owner_limit, f"{len(running)} runs of {is_now['owner']} are held"
            assert (is_now["holder"], int(is_now["epoch"])) == (process, epoch), f"{run} is not held as it was claimed"
            assert [message.decode() for message in conversation] == after["conversation"].get(run, [])
            self._all_is_there(run, awaited)

    def _all_is_there(self, run: str, awaited: list[bytes]) -> None:
        """The holder of a run that was parked gets every accepted result, and nothing is open."""
        for key, value in zip(awaited[::2], awaited[1::2], strict=True):
            kind, _, name = key.decode().partition(":")
            if not name:
                continue  # `plan` and `open`
            assert value[:1] == b"!", f"{run} goes on, and {key!r} has not come"
            if kind == "tool" and name in self.runs[run].results:
                assert value[1:].decode() == self.runs[run].results[name], f"the result of {name} of {run} is {value!r}"
            elif kind == "tool":
                assert value == b"!", f"{run} gets a result for {name} that was not delivered: {value!r}"

    def _written(self, request: Request, reply: Any, again: bool, before: Contents, after: Contents) -> Sequence[bytes]:
        """A write under a token. Returns the events that must be new."""
        run, token = request.facts["run"], request.facts["token"]
        held = _is_held(before["run"].get(run, {}), token)
        behind = held and token.seq < int(before["run"][run].get("seq", 0))
        if request.name == "commit":
            held = held and not behind
        if again:
            if request.name == "commit":
                assert reply in (request.accepted, [b"SUPERSEDED"]), f"another answer than before: {reply}"
            return ()
        if not held:
            assert reply == [b"SUPERSEDED"], f"{request.name} under an old token was answered {reply}"
            assert _same(before, after), f"{request.name} under an old token changed something"
            self.counted["zombies' writes refused"] += 1
            return ()
        if request.name == "spawn" and before["run"][run].get("cancel_requested") == "1":
            assert reply == [b"CANCELLED"] and _same(before, after)
            return ()
        assert reply[0] == b"OK", f"{request.name} under the present token was answered {reply}"
        match request.name:
            case "record":
                return self._stepped(request, behind, before, after)
            case "spawn":
                for child in request.facts["children"]:
                    if child.task_id not in self.runs:
                        self.runs[child.task_id] = Known([message.decode() for message in child.conversation])
                return ()
        return self._committed(run, request.facts["work"], reply, before, after)

    def _stepped(self, request: Request, behind: bool, before: Contents, after: Contents) -> Sequence[bytes]:
        run, entries, number = request.facts["run"], request.facts["entries"], request.facts["message_number"]
        if behind:
            assert _same(before, after)
            return ()
        for name, value in entries.items():
            first = before["journal"].get(run, {}).get(name, value.decode())
            assert after["journal"][run][name] == first, f"the journal entry {name} of {run} is not the first one"
        return request.facts["events"] if number > int(before["run"][run].get("message_number", 0)) else ()

    def _committed(self, run: str, work: Commit, reply: Any, before: Contents, after: Contents) -> Sequence[bytes]:
        known, was = self.runs[run], before["run"][run]
        action = Action(reply[1].decode())
        expected = {work.action}
        if was.get("cancel_requested") == "1":
            expected = {Action.CANCEL}
        elif work.action is Action.CONCLUDE:
            expected = {Action.COMPLETE}
        elif work.action is Action.COMPLETE and known.mail:
            expected = {Action.CONTINUE}
        elif work.action is Action.PARK:
            expected = {Action.PARK, Action.RESUME}
        assert action in expected, f"{run} was to {work.action}, and the answer is {action}"
        assert int(after["run"][run]["seq"]) == int(was.get("seq", 0)) + 1
        journal = before["journal"].get(run, {})
        messages = [
            message[1:].decode() if message[:1] == b"m" else journal[message[1:].decode()] for message in work.messages
        ]
        known.conversation = ([] if work.rewrite else known.conversation) + messages
        if action is Action.CONTINUE:
            assert [message.decode() for message in reply[2]] == known.mail
            known.conversation, known.mail = known.conversation + known.mail, []
        if action is Action.RESUME:
            self._all_is_there(run, reply[3])
        self.counted["commits"] += 1
        goes_on = action in (Action.CONTINUE, Action.RESUME, Action.CANCEL)
        heard_before = work.unanswered and int(was.get("message_number", 0)) >= work.unanswered
        return [*work.events[work.unanswered_events if heard_before else 0 :], *(() if goes_on else work.final_events)]

    # -- what became of the runs

    def _follow(self, request: Request, before: Contents, after: Contents) -> None:
        for run, was in before["run"].items():
            if run not in after["run"]:
                self._removed(request, run, was, before)
        for run, now in after["run"].items():
            assert run in self.runs, f"{run} was not enqueued"
            was = before["run"].get(run, {"status": "new"})
            if was["status"] in FINAL:
                for kind in ("run", "conversation", "fields"):
                    assert before[kind].get(run) == after[kind].get(run), (
                        f"{run} has ended, and {request.name} changed it"
                    )
            assert int(now.get("epoch", 0)) >= int(was.get("epoch", 0)), f"the epoch of {run} has fallen"
            self._read(request, run, after)
            if now["status"] in FINAL and was["status"] not in FINAL:
                self._ended(request, run, was, now, before, after)
        for run, awaited in before["awaits"].items():
            for key, value in awaited.items():
                now_there = after["awaits"].get(run, {}).get(key, value)
                assert value[:1] != "!" or now_there == value, f"what {run} received for {key} was changed"

    def _removed(self, request: Request, run: str, was: dict[str, str], before: Contents) -> None:
        parent = before["run"].get(was.get("parent", ""), {"status": "cancelled"})
        assert request.name == "expire" and was["status"] in FINAL, f"{request.name} removed {run}: {was['status']}"
        assert parent["status"] in FINAL, f"{run} was removed before its parent has ended"

    def _read(self, request: Request, run: str, after: Contents) -> None:
        """The conversation is what it was, or the mail has moved into it."""
        known, conversation, mail = self.runs[run], after["conversation"].get(run, []), after["mail"].get(run, [])
        if request.name == "claim" and known.mail and conversation == known.conversation + known.mail:
            known.conversation, known.mail = conversation, []
        assert conversation == known.conversation, (
            f"the conversation of {run} is {conversation}, and should be {known.conversation}"
        )
        if after["run"][run]["status"] not in FINAL:
            assert mail == known.mail, f"the mail of {run} is {mail}, and should be {known.mail}"

    def _ended(
        self, request: Request, run: str, was: dict[str, str], now: dict[str, str], before: Contents, after: Contents
    ) -> None:
        known, status = self.runs[run], now["status"]
        told = [event for event in _new_events(now["owner"], before, after) if event.get("task_id") == run]
        types = Counter(event["event_type"] for event in told)
        allowed = {
            "completed": {"commit"}, "failed": {"commit", "reclaim"},
            "cancelled": {"commit", "reclaim", "cancel", "cascade", "release"},
        }[status]  # fmt: skip
        assert request.name in allowed, f"{run} has {status} by {request.name}"
        assert status == "cancelled" or not (known.to_be_cancelled or was.get("cancel_requested") == "1"), (
            f"{run} was to be cancelled, and has {status}"
        )
        assert types["run_cancelled"] == (status == "cancelled")
        if known.mail:
            concluded = request.name == "commit" and request.facts["work"].action is Action.CONCLUDE
            assert status != "completed" or concluded, f"{run} completed over unread mail"
            assert types["run_steering_failed"] == 1, f"mail of {run} vanished: {known.mail}"
            known.mail = []
        parent = now.get("parent", "")
        if parent and after["run"].get(parent, {"status": "failed"})["status"] not in FINAL:
            key = f"child:{run}"
            if before["awaits"].get(parent, {}).get(key, "")[:1] == "?":
                heard = after["awaits"][parent][key]
                assert heard[:1] == "!" and json.loads(heard[1:])["status"] == status, (
                    f"{parent} heard {heard} of {run}"
                )

    def _marked(self, marks: Sequence[bytes], before: Contents, after: Contents) -> None:
        """Of the events that clients sent, exactly those of this request are new, each once."""
        expected = Counter(json.loads(mark)["mark"] for mark in marks)
        new = Counter(
            event["mark"] for owner in after["events"] for event in _new_events(owner, before, after) if "mark" in event
        )
        assert new == expected, f"events {dict(new)} were published, and should be {dict(expected)}"

    # -- the end

    def all_is_over(self, found: Contents) -> None:
        """Everything has ended: no run is held, queued or counted any more, and every parent was notified."""
        for run, known in self.runs.items():
            status = found["run"].get(run, {"status": "gone"})["status"]
            assert status in FINAL | {"gone"}, f"{run} is {status} for ever"
            assert status in ("cancelled", "gone") or not known.to_be_cancelled
        own = {kind for kind in _OWN if not KINDS[kind].kept}
        waiting = {place.kind for place in PLACES if not place.is_final} - {"ready"}  # a cancelled run stays there
        for kind in (*own, *waiting, "running", "doomed", "deferred"):
            assert not found[kind], f"{kind}: {dict(found[kind])} is left over"
        for owner, about in found["owner"].items():
            assert about["active"] == "0", f"{owner} has {about['active']} active runs"
        ends = Counter(
            event["batch_id"]
            for stored in found["events"].values()
            for event in _events(stored)
            if event["event_type"] in ("batch_completed", "batch_cancelled")
        )
        for batch, progress in _progress(found).items():
            assert progress == sorted(progress) and len(progress) - len(set(progress)) <= 1, (
                f"batch {batch}: {progress}"
            )
        for batch, counts in found["batch"].items():
            assert counts["ended"] == counts["total"] and counts["active"] == "0", f"batch {batch}: {counts}"
            assert ends[batch] == 1, f"the end of batch {batch} was published {ends[batch]} times"


def _progress(found: Contents) -> dict[str, list[int]]:
    """By batch: the percents that were published. Each is published once, and perhaps again with the end."""
    progress: dict[str, list[int]] = {}
    for stored in found["events"].values():
        for event in _events(stored):
            if event["event_type"] == "batch_progress":
                progress.setdefault(event["batch_id"], []).append(event["progress"])
    return progress


def _same(before: Contents, after: Contents) -> bool:
    return all(before[kind] == after[kind] for kind in OF_RUNS)


def _difference(before: Contents, after: Contents) -> str:
    return "\n".join(
        f"{kind}:{name}  {before[kind].get(name)} -> {after[kind].get(name)}"
        for kind in OF_RUNS
        for name in {*before[kind], *after[kind]}
        if before[kind].get(name) != after[kind].get(name)
    )


def _is_held(run: dict[str, str], token: Token) -> bool:
    return (run.get("status"), run.get("epoch"), run.get("nonce")) == ("processing", str(token.epoch), token.nonce)


def _listed(args: tuple[Any, ...], at: int) -> Sequence[bytes]:
    return args[at + 1 : at + 1 + int(args[at])]


def _events(stored: Sequence[Any]) -> list[dict[str, Any]]:
    return [json.loads(parts[1]) for _, parts in stored]


def _new_events(owner: str, before: Contents, after: Contents) -> list[dict[str, Any]]:
    return _events(after["events"].get(owner, [])[len(before["events"].get(owner, [])) :])
