"""Looks at a running system from anywhere, and tells whether it keeps its promise: `python -m factorial doctor`.

Reads only, so a server's user who may only read will do. `mailbox/checkup.py` does the looking; here it is told.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from factorial.commandline import show
from factorial.config import RedisConfig
from factorial.errors import ConfigError, MailboxRefusedError
from factorial.mailbox.checkup import Checkup, check
from factorial.mailbox.invariants import Invariant
from factorial.mailbox.keys import LAYOUT_VERSION
from factorial.mailbox.visit import Visit, visiting
from factorial.utils import dump_json, one_line

__all__ = ["examine"]

_MOST_SHOWN = 10
"""Findings of one invariant, for people."""
_MOST_WRITTEN = 1000
"""The same, as JSON."""


async def examine(redis: RedisConfig, *, events: bool = True, as_json: bool = False) -> int:
    """Check the namespace, and print what was found. 0 if all is well, 1 if something is wrong.

    Raises `ConfigError` for a namespace that nobody has ever used, and `MailboxError`.
    """
    async with visiting(redis) as visit:
        await _check_layout(visit)
        checkup = await check(visit.scripts.commands, visit.scripts.keys, events=events)
    if as_json:
        print(dump_json(_plain(redis.namespace, checkup)).decode())
    else:
        show("\n".join(_drawn(visit.place, checkup)))
    return 1 if checkup.findings else 0


async def _check_layout(visit: Visit) -> None:
    version = await visit.scripts.commands.execute("HGET", visit.scripts.keys.layout, "version")
    if version is None:
        raise ConfigError(f"nothing was ever stored in {visit.place}: is it the right server and namespace?")
    if version != str(LAYOUT_VERSION).encode():
        raise MailboxRefusedError(
            f"{visit.place} has layout {version.decode(errors='replace')}, and this release of Factorial reads layout "
            f"{LAYOUT_VERSION}: use the release that wrote it"
        )


def _drawn(place: str, checkup: Checkup) -> Iterator[str]:
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
        yield f"  {'✗' if found else '✓'} {invariant:2d}  {invariant.promise}"
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


def _plain(namespace: str, checkup: Checkup) -> dict[str, Any]:
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
                "violations": len(found),
                "findings": [
                    {"subject": one.subject, "text": one.text, "mend": one.mend} for one in found[:_MOST_WRITTEN]
                ],
            }
            for invariant, found in findings.items()
        ],
        "notes": checkup.notes,
    }
