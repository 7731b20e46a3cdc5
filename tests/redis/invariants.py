"""Reads a whole namespace and asserts what must be true of it at any moment, whatever has happened.

    1  every run is in exactly one of ready, suspects, held, due, parked, ended; a parked one waits for something that
       has not come, and is due if that has a deadline
    2  the count of an owner's active runs is the number of its runs that have not ended
    3  something ready => a wake token is there (only where `quiet`: nobody is just about to use one); suspects wait
       => it is there, or it was dropped by a process that cannot take them and puts it back when it can
    4  nothing is left of ended runs but what can be read of them
    5  what a process is said to hold, and what its runs say of their holder, agree
    6  nothing is left of runs that are gone
    7  what a batch says of its runs, and what they say, agree; the children that a run is said to have are its own, and
       have not ended; a result is there for each child that has ended, if its parent waits
    8  a process holds one suspect at the most, and it is noted which

It reads key by key, so call it when nothing moves.
"""

from collections import Counter, defaultdict
from typing import Any

from factorial.mailbox.connect import Commands

__all__ = ["assert_invariants", "contents", "is_suspect"]

FINAL = {"completed", "failed", "cancelled"}
PARKED = {"pending_tool_results", "pending_child_tasks"}
Contents = dict[str, dict[str, Any]]


async def contents(commands: Commands, namespace: str) -> Contents:
    """Everything that is stored in `namespace`: {kind of key: {name: value}}, as text, and without times to live."""
    prefix = f"{{{namespace}:0}}:"
    found: Contents = defaultdict(dict)
    cursor = b"0"
    while True:
        cursor, keys = await commands.execute("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", 1000)
        for key in keys:
            kind, _, name = key.decode().removeprefix(prefix).partition(":")
            found[kind][name] = await _value(commands, key)
        if int(cursor) == 0:
            return found


async def _value(commands: Commands, key: bytes) -> Any:
    match await commands.execute("TYPE", key):
        case b"string":
            return await commands.execute("GET", key)
        case b"list":
            return [item.decode() for item in await commands.execute("LRANGE", key, 0, -1)]
        case b"set":
            return {item.decode() for item in await commands.execute("SMEMBERS", key)}
        case b"hash":
            return _paired(await commands.execute("HGETALL", key))
        case b"zset":
            return _paired(await commands.execute("ZRANGE", key, 0, -1, "WITHSCORES"))
        case b"stream":
            return await commands.execute("XRANGE", key, "-", "+")
        case other:
            raise AssertionError(f"{key!r} is of an unknown type: {other!r}")


def _paired(flat: list[bytes]) -> dict[str, str]:
    items = iter(item.decode() for item in flat)
    return dict(zip(items, items, strict=True))


async def assert_invariants(commands: Commands, namespace: str, *, quiet: bool = False) -> None:
    """Fail with a list of what is wrong in `namespace`."""
    found = await contents(commands, namespace)
    violations = [
        *_places(found),
        *_counts(found),
        *_holders(found),
        *_suspects(found),
        *_leftovers(found),
        *_children(found),
    ]
    if quiet:
        violations += _wake_tokens(found)
    assert not violations, "\n".join(violations)


def _places(found: Contents) -> list[str]:
    violations = []
    for run_id, run in found["r"].items():
        status, agent = run["status"], run["agent"]
        places = {
            "queued": int(run_id in found["q"].get(agent, []))
            + int(run_id in found["L"].get(f"{agent}:{run['owner']}", {})),
            "suspects": found["u"].get(agent, []).count(run_id),
            "backoff": sum(run_id in due for due in found["z"].values()),
            "parked": sum(run_id in parked for parked in found["W"].values()),
            "processing": sum(run_id in held for held in found["h"].values()),
            "ended": sum(run_id in ended for ended in found["t"].values()),
        }
        if status != "queued":
            places["queued"] = 0  # an entry that a cancelled run left in the queue is skipped by the next claim
        if status in PARKED:
            violations += _waiting(run_id, found["w"].get(run_id, {}), due=places.pop("backoff"))
        expected = (
            "parked"
            if status in PARKED
            else "ended"
            if status in FINAL
            else "suspects"
            if status == "queued" and is_suspect(run)
            else status
        )
        if places != {place: int(place == expected) for place in places}:
            violations.append(f"run {run_id} is {status}, and found in {places}")
        if status in FINAL and run_id not in found["t"].get(f"{agent}:{status}", {}):
            violations.append(f"run {run_id} is {status}, and not listed as such")
    return violations


def _waiting(run_id: str, awaited: dict[str, str], *, due: int) -> list[str]:
    """What is wrong with a parked run. A thing that is waited for is '?' and its deadline, one that has come '!'."""
    deadlines = [int(value[1:]) for key, value in awaited.items() if key[:1] in "tc" and value[:1] == "?"]
    violations = []
    if not deadlines or len(deadlines) != int(awaited["open"]):
        violations.append(
            f"run {run_id} is parked for {awaited.get('open')} things, and {len(deadlines)} have not come"
        )
    if any(deadlines) and not due:  # that it is due without a deadline does no harm: what had one may have come
        violations.append(f"run {run_id} waits until {deadlines}, and is not due")
    return violations


def _children(found: Contents) -> list[str]:
    violations = []
    for parent, children in found["f"].items():
        for child in children:
            run = found["r"].get(child, {})
            if run.get("parent") != parent or run["status"] in FINAL:
                violations.append(f"{child} is listed as a child of {parent}, and is {run}")
    for run_id, run in found["r"].items():
        parent = found["r"].get(run.get("parent", ""))
        if parent and run["status"] not in FINAL and parent["status"] != "cancelled":
            ended = parent["status"] in FINAL
            if (run_id in found["f"].get(run["parent"], ())) == ended:
                violations.append(
                    f"{run_id} is a child of {run['parent']}, which is {parent['status']}; listed: {not ended}"
                )
        for key, value in found["w"].get(run_id, {}).items():
            child = found["r"].get(key.removeprefix("child:"), {})
            if key.startswith("child:") and value[0] == "?" and child.get("status", "completed") in FINAL:
                violations.append(f"{run_id} waits for {key}, which has ended")
    for batch, counts in found["b"].items():
        runs = [run for run in found["r"].values() if run.get("batch") == batch]
        ended = Counter(run["status"] for run in runs if run["status"] in FINAL)
        gone = int(counts["total"]) - len(runs)  # removed, or not spawned yet
        if not 0 <= int(counts.get("ended", 0)) - ended.total() <= gone:
            violations.append(f"batch {batch} counts {counts}, and of {len(runs)} runs have ended {dict(ended)}")
    return violations


def _counts(found: Contents) -> list[str]:
    active = Counter(run["owner"] for run in found["r"].values() if run["status"] not in FINAL)
    counted = {owner: int(about["active"]) for owner, about in found["o"].items()}
    return [
        f"owner {owner} has {active[owner]} active runs, and the count says {counted.get(owner)}"
        for owner in {*active, *counted}
        if active[owner] != counted.get(owner)
    ]


def _holders(found: Contents) -> list[str]:
    violations = [
        f"process {process} holds {run_id}, which is {found['r'].get(run_id)}"
        for process, held in found["h"].items()
        for run_id in held
        if found["r"].get(run_id, {}).get("holder") != process
    ]
    for run_id, run in found["r"].items():
        if (run["status"] == "processing") != bool(run.get("holder")):
            violations.append(f"run {run_id} is {run['status']}, and its holder is {run.get('holder')!r}")
    return violations


def is_suspect(run: dict[str, str]) -> bool:
    """Whether two or more processes crashed while they held the run, since it last finished a step."""
    return int(run.get("crashes", 0)) >= 2


def _suspects(found: Contents) -> list[str]:
    violations = []
    for process in {*found["h"], *found["y"]}:
        held = [run_id for run_id in found["h"].get(process, ()) if is_suspect(found["r"][run_id])]
        noted = found["y"].get(process, {}).get("suspect")
        if held != ([noted] if noted else []):
            violations.append(f"process {process} holds the suspects {held}, and {noted} is noted")
    for agent, processes in found["v"].items():
        violations += [
            f"{process} passed on a token of {agent}, and has room for a suspect"
            for process in processes
            if "suspect" not in found["y"].get(process, {})
        ]
    for run_id, run in found["r"].items():
        recoveries, crashes, strikes = (int(run.get(name, 0)) for name in ("recoveries", "crashes", "strikes"))
        if max(crashes, strikes) > recoveries:
            violations.append(f"run {run_id}: {recoveries} recoveries, {crashes} crashes, {strikes} strikes")
    return violations


def _leftovers(found: Contents) -> list[str]:
    violations = []
    names = {
        "j": "journal",
        "m": "mail",
        "d": "ids of accepted mail",
        "w": "list of awaited things",
        "f": "list of children",
    }
    for kind, what in names.items():
        for run_id in found[kind]:
            if found["r"].get(run_id, {"status": "gone"})["status"] in FINAL | {"gone"}:
                violations.append(f"the {what} of the ended run {run_id} is still there")
    for kind, what in {"l": "conversation", "x": "context"}.items():
        violations += [f"the {what} of {run_id} is still there" for run_id in found[kind] if run_id not in found["r"]]
    return violations


def _wake_tokens(found: Contents) -> list[str]:
    statuses = {run_id: run["status"] for run_id, run in found["r"].items()}
    return [
        f"runs of {agent} are ready, and there is no wake token"
        for agent, ready in found["q"].items()
        if any(statuses.get(run_id) == "queued" for run_id in ready) and not found["k"].get(agent)
    ] + [
        f"suspects of {agent} wait, and nobody will hear of it"
        for agent in found["u"]
        if not found["k"].get(agent) and not found["v"].get(agent)
    ]
