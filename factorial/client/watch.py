"""Subscriptions to an owner's events, and the position in the stream at which each begins."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from factorial.errors import MailboxUnavailableError
from factorial.mailbox import Namespace
from factorial.mailbox.script import Scripts
from factorial.mailbox.views.read import first_events
from factorial.mailbox.views.subscription import EventFilter, Position, activity_since, end_of_events
from factorial.task import check_owner_id, check_task_id

__all__ = ["subscribe"]


async def subscribe(
    namespace: Namespace, owner_id: str, wanted: EventFilter, after: str | None
) -> AsyncGenerator[dict[str, Any], None]:
    """The owner's events that pass the filter, in order, from the position that `after` gives.

    The iteration ends when `namespace` is closed.
    """
    check_owner_id(owner_id)
    try:
        start = await _start(namespace.scripts, owner_id, wanted, after)
        async with aclosing(namespace.subscribe(owner_id, start, wanted)) as updates:
            async for update in updates:
                yield update
    except MailboxUnavailableError:
        if not namespace.is_closed:
            raise


async def _start(scripts: Scripts, owner_id: str, wanted: EventFilter, after: str | None) -> Position:
    """Where the subscription begins. It depends on what is stored alone, so equal calls begin at the same event."""
    if after is not None and after != "$":
        return Position.after(after)
    # Read first: a task that is enqueued meanwhile is found by what follows, or its events come after this one.
    newest = await end_of_events(scripts, owner_id)
    if after == "$":
        return newest
    if wanted.task_ids:
        births = await first_events(scripts, [check_task_id(task_id) for task_id in wanted.task_ids])
    else:
        since = await activity_since(scripts, owner_id)
        births = [since] if since else []
    return min((Position.before(event_id) for event_id in births), default=newest)
