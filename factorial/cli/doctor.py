"""Checks a namespace against its invariants, from anywhere: `factorial doctor`.

It only reads, so a server user that may only read is enough:
`ACL SETUSER doctor on >PASSWORD ~{NAMESPACE:0}:* -@all +@read +@connection +time +info`.
`mailbox/doctor/` checks the namespace. This module prints the report.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factorial._core.json import dump_json
from factorial._core.text import one_line
from factorial.cli.common import FACTORIAL, Verb, redis_of, show
from factorial.config import RedisConfig
from factorial.errors import ConfigError, MailboxRefusedError

if TYPE_CHECKING:
    from factorial.mailbox.doctor import DoctorReport, Finding, Invariant
    from factorial.mailbox.doctor.reader import Reader
    from factorial.mailbox.visit import Visit

__all__ = ["VERBS", "run_doctor"]

_MOST_SHOWN = 10
"""The number of findings of one invariant that are printed."""
_MOST_WRITTEN = 1000
"""The number of findings of one invariant in the JSON."""

_NOTES = """\
It changes nothing, and you can run it while the system works: what looks wrong is checked again, so work in progress is
not reported. A namespace with a million tasks takes some minutes."""


@dataclass(frozen=True, slots=True)
class _Result:
    """What was found about one invariant."""

    invariant: "Invariant"
    is_checked: bool
    findings: "list[Finding]"


async def run_doctor(redis: RedisConfig, *, events: bool = True, as_json: bool = False) -> int:
    """Check the namespace, and print the report. Returns 0 if all is well, 1 if something is wrong.

    `events`: check the stored events, too. Raises `ConfigError` for a namespace, or an embedded directory, that was
    never used, and `MailboxError`.
    """
    from factorial.mailbox.doctor import Invariant, check_namespace
    from factorial.mailbox.visit import visiting

    _check_directory(redis.resolved_url)
    async with visiting(redis) as visit:
        await _check_layout(visit)
        report = await check_namespace(visit.scripts.commands, visit.scripts.keys, events=events)
        report.notes += await _about_server(visit)
    results = [
        _Result(
            invariant,
            events or invariant is not Invariant.END_EVENT,
            [finding for finding in report.findings if finding.invariant is invariant],
        )
        for invariant in Invariant
    ]
    if as_json:
        print(dump_json(_plain(redis.namespace, report, results)).decode())
    else:
        show("\n".join(_drawn(visit.place, report, results)))
    return 1 if report.findings else 0


def _check_directory(url: str) -> None:
    if url.startswith("embedded:") and not Path(url.removeprefix("embedded:")).expanduser().is_dir():
        raise ConfigError(f"nothing was ever stored in {url}: there is no such directory")


async def _check_layout(visit: "Visit") -> None:
    from factorial.mailbox.doctor.reader import Reader
    from factorial.mailbox.layout import check_layout, read_layout

    commands, keys = visit.scripts.commands, visit.scripts.keys
    version = await read_layout(commands, keys)
    if version is None and not await _has_keys(Reader(commands, keys)):
        raise ConfigError(f"nothing was ever stored in {visit.place}: is it the right server and namespace?")
    check_layout(version, keys, visit.place)


async def _has_keys(reader: "Reader") -> bool:
    async for piece in reader.names():
        if piece:
            return True
    return False


async def _about_server(visit: "Visit") -> list[str]:
    """Settings of the server that can lose tasks."""
    from factorial.mailbox.transport.server import check_server

    try:
        return await check_server(visit.scripts.commands, url_shown=visit.place, settings=False)
    except MailboxRefusedError as unfit:
        return [str(unfit)]


def _drawn(place: str, report: "DoctorReport", results: list[_Result]) -> Iterator[str]:
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
    for result in results:
        yield from _drawn_result(result)
    if report.notes:
        yield ""
        yield from (f"  note: {one_line(note)}" for note in report.notes)
    yield ""
    yield f"  violations: {len(report.findings)}" if report.findings else "  all is well"


def _drawn_result(result: _Result) -> Iterator[str]:
    invariant, found = result.invariant, result.findings
    mark, note = ("✗" if found else "✓", "") if result.is_checked else ("?", " (not checked: --quick)")
    yield f"  {mark} {invariant:2d}  {invariant.promise}{note}"
    for finding in found[:_MOST_SHOWN]:
        yield f"         {one_line(finding.text)}"
        yield f"           -> {one_line(finding.fix)}"
    if len(found) > _MOST_SHOWN:
        yield f"         and {len(found) - _MOST_SHOWN} more; --json has them"


def _plain(namespace: str, report: "DoctorReport", results: list[_Result]) -> dict[str, Any]:
    return {
        "namespace": namespace,
        "well": not report.findings,
        "runs": report.statuses,
        "owners": report.owners,
        "processes": {"alive": report.alive, "without_lease": report.missing},
        "invariants": [
            {
                "number": int(one.invariant),
                "promise": one.invariant.promise,
                "checked": one.is_checked,
                "violations": len(one.findings),
                "findings": [
                    {"subject": found.subject, "text": found.text, "fix": found.fix}
                    for found in one.findings[:_MOST_WRITTEN]
                ],
            }
            for one in results
        ],
        "notes": report.notes,
    }


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="skip the stored events, which take longest to read")
    parser.add_argument("--json", action="store_true", help="print everything, as JSON")


def _run(options: argparse.Namespace) -> int:
    return asyncio.run(run_doctor(redis_of(options), events=not options.quick, as_json=options.json))


VERBS = (
    Verb(
        program=FACTORIAL,
        name="doctor",
        summary="check that no task is lost, and everything else that is guaranteed",
        description="Check that no task is lost in what is stored, and everything else that is guaranteed of tasks.",
        notes=_NOTES,
        exit_codes=(
            "0 all is well",
            "1 something is wrong, or the server cannot be reached",
            "2 the command was wrong, such as a namespace that does not exist",
            "130 Ctrl-C",
        ),
        examples=["doctor --config system.toml", "doctor --redis redis://db1:6379/0 --namespace prod --json"],
        add_options=_add_options,
        run=_run,
    ),
)
