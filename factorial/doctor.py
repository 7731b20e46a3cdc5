"""Looks at a running system from anywhere, and tells whether it keeps its promise: `python -m factorial doctor`.

Reads only, so a server's user who may only read will do: `ACL SETUSER doctor on >PASSWORD ~{NAMESPACE:0}:* -@all +@read
+@connection +time +info`. `mailbox/checkup/` does the looking; here it is told.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factorial._core.json import dump_json
from factorial._core.text import one_line
from factorial.commandline import show
from factorial.config import RedisConfig
from factorial.errors import ConfigError, MailboxRefusedError
from factorial.mailbox.doctor import Checkup, Invariant, check
from factorial.mailbox.doctor.reader import Reader
from factorial.mailbox.layout import check_layout, read_layout
from factorial.mailbox.transport.server import check_server
from factorial.mailbox.visit import Visit, visiting

__all__ = ["examine"]

_MOST_SHOWN = 10
"""Findings of one invariant, for people."""
_MOST_WRITTEN = 1000
"""The same, as JSON."""


async def examine(redis: RedisConfig, *, events: bool = True, as_json: bool = False) -> int:
    """Check the namespace, and print what was found. 0 if all is well, 1 if something is wrong.

    Raises `ConfigError` for a namespace, or an embedded directory, that nobody has ever used, and `MailboxError`.
    """
    _check_directory(redis.resolved_url)
    async with visiting(redis) as visit:
        await _check_layout(visit)
        checkup = await check(visit.scripts.commands, visit.scripts.keys, events=events)
        checkup.notes += await _about_server(visit)
    if as_json:
        print(dump_json(_plain(redis.namespace, checkup, events)).decode())
    else:
        show("\n".join(_drawn(visit.place, checkup, events)))
    return 1 if checkup.findings else 0


def _check_directory(url: str) -> None:
    if url.startswith("embedded:") and not Path(url.removeprefix("embedded:")).expanduser().is_dir():
        raise ConfigError(f"nothing was ever stored in {url}: there is no such directory")


async def _check_layout(visit: Visit) -> None:
    commands, keys = visit.scripts.commands, visit.scripts.keys
    version = await read_layout(commands, keys)
    if version is None and not await _has_keys(Reader(commands, keys)):
        raise ConfigError(f"nothing was ever stored in {visit.place}: is it the right server and namespace?")
    check_layout(version, keys, visit.place)


async def _about_server(visit: Visit) -> list[str]:
    """What will lose tasks one day, if it has not yet."""
    try:
        return await check_server(visit.scripts.commands, url_shown=visit.place, settings=False)
    except MailboxRefusedError as unfit:
        return [str(unfit)]


async def _has_keys(reader: Reader) -> bool:
    async for piece in reader.names():
        if piece:
            return True
    return False


def _drawn(place: str, checkup: Checkup, events: bool) -> Iterator[str]:
    yield one_line(place)
    total: Counter[str] = Counter()
    for counts in checkup.statuses.values():
        total.update(counts)
    yield f"  runs: {total.total()}; agents: {len(checkup.statuses)}; owners with runs under way: {checkup.owners}"
    for agent, counts in checkup.statuses.items():
        yield f"    {one_line(agent)}: " + ", ".join(f"{count} {status}" for status, count in counts.items())
    missing = f"; without a lease: {checkup.missing}" if checkup.missing else ""
    yield f"  living processes: {checkup.alive}{missing}"
    yield ""
    for invariant in Invariant:
        found = [finding for finding in checkup.findings if finding.invariant is invariant]
        if _is_checked(invariant, events):
            yield f"  {'✗' if found else '✓'} {invariant:2d}  {invariant.promise}"
        else:
            yield f"  ? {invariant:2d}  {invariant.promise} (not checked: --quick)"
        for finding in found[:_MOST_SHOWN]:
            yield f"         {one_line(f'{finding.subject} {finding.text}')}"
            if finding.mend:
                yield f"           -> {one_line(finding.mend)}"
        if len(found) > _MOST_SHOWN:
            yield f"         and {len(found) - _MOST_SHOWN} more; --json has them"
    if checkup.notes:
        yield ""
        yield from (f"  note: {one_line(note)}" for note in checkup.notes)
    yield ""
    yield f"  violations: {len(checkup.findings)}" if checkup.findings else "  all is well"


def _is_checked(invariant: Invariant, events: bool) -> bool:
    return events or invariant is not Invariant.TOLD


def _plain(namespace: str, checkup: Checkup, events: bool) -> dict[str, Any]:
    findings = {
        invariant: [finding for finding in checkup.findings if finding.invariant is invariant]
        for invariant in Invariant
    }
    return {
        "namespace": namespace,
        "well": not checkup.findings,
        "runs": checkup.statuses,
        "owners": checkup.owners,
        "processes": {"alive": checkup.alive, "without_lease": checkup.missing},
        "invariants": [
            {
                "number": int(invariant),
                "promise": invariant.promise,
                "checked": _is_checked(invariant, events),
                "violations": len(found),
                "findings": [
                    {"subject": one.subject, "text": one.text, "mend": one.mend} for one in found[:_MOST_WRITTEN]
                ],
            }
            for invariant, found in findings.items()
        ],
        "notes": checkup.notes,
    }
