"""Asserts the invariants of a namespace, with the rules that `factorial doctor` has."""

from factorial.mailbox.doctor import check_namespace
from factorial.mailbox.keys import Keys
from factorial.mailbox.transport.commands import Commands

__all__ = ["assert_invariants"]


async def assert_invariants(
    commands: Commands, namespace: str, *, quiet: bool = False, end_events: bool = True
) -> None:
    """Fail with the doctor's findings about `namespace`, in which nothing changes meanwhile.

    `quiet`: no process died either, so each agent with ready runs must have a wake token. `end_events`: the end of each
    run must be an event. That is so unless a test makes commits by hand.
    """
    report = await check_namespace(commands, Keys(namespace), still=True, tokens=quiet, events=end_events)
    assert not report.findings, "\n".join(map(str, report.findings))
