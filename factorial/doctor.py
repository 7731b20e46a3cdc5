"""Checks a namespace against its invariants, from anywhere: `python -m factorial doctor`.

It only reads, so a server user that may only read is enough:
`ACL SETUSER doctor on >PASSWORD ~{NAMESPACE:0}:* -@all +@read +@connection +time +info`.
`mailbox/doctor/` checks the namespace. This module prints the report.
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
from factorial.mailbox.doctor import DoctorReport, Invariant, check_namespace
from factorial.mailbox.doctor.reader import Reader
from factorial.mailbox.layout import check_layout, read_layout
from factorial.mailbox.transport.server import check_server
from factorial.mailbox.visit import Visit, visiting

__all__ = ["run_doctor"]

_MOST_SHOWN = 10
"""The number of findings of one invariant that are printed."""
_MOST_WRITTEN = 1000
"""The number of findings of one invariant in the JSON."""


async def run_doctor(redis: RedisConfig, *, events: bool = True, as_json: bool = False) -> int:
    """Check the namespace, and print what was found. 0 if all is well, 1 if something is wrong.

    Raises `ConfigError` for a namespace, or an embedded directory, that nobody has ever used, and `MailboxError`.
    """
    _check_directory(redis.resolved_url)
    async with visiting(redis) as visit:
        await _check_layout(visit)
        report = await check_namespace(visit.scripts.commands, visit.scripts.keys, events=events)
        report.notes += await _about_server(visit)
    if as_json:
        print(dump_json(_plain(redis.namespace, report, events)).decode())
    else:
        show("\n".join(_drawn(visit.place, report, events)))
    return 1 if report.findings else 0


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


def _drawn(place: str, report: DoctorReport, events: bool) -> Iterator[str]:
    yield one_line(place)
    total: Counter[str] = Counter()
    for counts in report.statuses.values():
        total.update(counts)
    yield f"  runs: {total.total()}; agents: {len(report.statuses)}; owners with runs under way: {report.owners}"
    for agent, counts in report.statuses.items():
        yield f"    {one_line(agent)}: " + ", ".join(f"{count} {status}" for status, count in counts.items())
    missing = f"; without a lease: {report.missing}" if report.missing else ""
    yield f"  living processes: {report.alive}{missing}"
    yield ""
    for invariant in Invariant:
        found = [finding for finding in report.findings if finding.invariant is invariant]
        if _is_checked(invariant, events):
            yield f"  {'✗' if found else '✓'} {invariant:2d}  {invariant.promise}"
        else:
            yield f"  ? {invariant:2d}  {invariant.promise} (not checked: --quick)"
        for finding in found[:_MOST_SHOWN]:
            yield f"         {one_line(finding.text)}"
            yield f"           -> {one_line(finding.fix)}"
        if len(found) > _MOST_SHOWN:
            yield f"         and {len(found) - _MOST_SHOWN} more; --json has them"
    if report.notes:
        yield ""
        yield from (f"  note: {one_line(note)}" for note in report.notes)
    yield ""
    yield f"  violations: {len(report.findings)}" if report.findings else "  all is well"


def _is_checked(invariant: Invariant, events: bool) -> bool:
    return events or invariant is not Invariant.END_EVENT


def _plain(namespace: str, report: DoctorReport, events: bool) -> dict[str, Any]:
    findings = {
        invariant: [finding for finding in report.findings if finding.invariant is invariant] for invariant in Invariant
    }
    return {
        "namespace": namespace,
        "well": not report.findings,
        "runs": report.statuses,
        "owners": report.owners,
        "processes": {"alive": report.alive, "without_lease": report.missing},
        "invariants": [
            {
                "number": int(invariant),
                "promise": invariant.promise,
                "checked": _is_checked(invariant, events),
                "violations": len(found),
                "findings": [
                    {"subject": one.subject, "text": one.text, "fix": one.fix} for one in found[:_MOST_WRITTEN]
                ],
            }
            for invariant, found in findings.items()
        ],
        "notes": report.notes,
    }
