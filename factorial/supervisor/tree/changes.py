"""Changes that an operator can make to a running tree, beyond OTP's rules.

Each change holds the lock of the child that it concerns, so it waits for a restart in progress, and a restart waits for
it. A change raises `SupervisionError` if something cannot be started; what ran before keeps running.
"""

import asyncio
from dataclasses import dataclass, field

from factorial.errors import SupervisionError
from factorial.supervisor.rules.spec import ChildSpec, Spec, SupervisorSpec
from factorial.supervisor.rules.strategy import ChildState
from factorial.supervisor.tree.incarnation import Incarnation
from factorial.supervisor.tree.tree import Tree

__all__ = ["Changes", "apply", "replace_child", "resume_child", "suspend_child", "terminate_child"]


@dataclass(frozen=True, slots=True)
class Changes:
    """What was done, by the ids of the children."""

    stopped: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """They were suspended, or had ended, and stay so."""


async def replace_child(tree: Tree, child_id: str, spec: Spec | None = None) -> None:
    """Extension: start a successor, from `spec` if it is given. When it is ready, drain the predecessor.

    This does not count as a restart. If the successor does not get ready, the predecessor stays.
    """
    async with tree.locked(child_id):
        predecessor = tree.current.get(child_id)
        successor = tree.begin(spec or tree.rules.spec(child_id))
        await tree.incarnations.until_ready(successor)
        tree.rules.revise(successor.spec)
        tree.rules.started(child_id)
        tree.current[child_id] = successor
    if predecessor is not None:
        await tree.incarnations.terminate(predecessor)


async def suspend_child(tree: Tree, child_id: str) -> None:
    """Terminate a child, and keep it for `resume_child` (OTP's `terminate_child`).

    A supervisor that is not running is not terminated: its parent is about to start it again. Its processes are
    suspended before it starts them.
    """
    spec = tree.rules.spec(child_id)
    if isinstance(spec, SupervisorSpec):
        tree.suspended.update(process.id for process in spec.processes)
        return
    tree.suspended.add(child_id)
    async with tree.locked(child_id):
        incarnation = _detach(tree, child_id)
    if incarnation is not None:
        await tree.incarnations.terminate(incarnation)


async def resume_child(tree: Tree, child_id: str) -> None:
    """Start a child that was suspended or has ended (OTP's `restart_child`)."""
    async with tree.locked(child_id):
        before = tree.rules.state(child_id) if child_id in tree.rules else None
        if before not in (ChildState.SUSPENDED, ChildState.ENDED):
            return
        try:
            await tree.start(child_id)
        except SupervisionError:
            if before is ChildState.ENDED:
                tree.rules.stays_ended(child_id)
            else:
                tree.rules.suspend(child_id)
            raise
        tree.suspended.discard(child_id)


async def terminate_child(tree: Tree, child_id: str) -> None:
    """Terminate a child, and remove it from the tree."""
    async with tree.locked(child_id):
        incarnation = _detach(tree, child_id)
    if incarnation is not None:
        await tree.incarnations.terminate(incarnation)
    async with tree.locked(child_id):
        tree.rules.remove(child_id)
        tree.incarnations.last_exits.pop(child_id, None)
        tree.changed()


async def apply(tree: Tree, spec: SupervisorSpec, *, roll: bool, changes: Changes | None = None) -> Changes:
    """Change the tree into what `spec` says, one child after the other: stop children that are gone from it, start new
    ones, and replace those whose specification has changed; with `roll`, replace all running ones. Returns what was
    done, and adds it to `changes` as it happens.

    A failure ends the change for the children of one supervisor. The change goes on for those of other supervisors, and
    the failure is raised at the end.
    """
    changes = changes or Changes()
    await _until_started(tree)
    wanted = {child.id: child for child in spec.children}
    unwanted = [child_id for child_id in reversed(tree.order) if child_id not in wanted]
    await asyncio.gather(*(terminate_child(tree, child_id) for child_id in unwanted))
    changes.stopped.extend(unwanted)
    await tree.reconfigure(spec.flags)
    failures: list[SupervisionError] = []
    for child in wanted.values():
        try:
            await _apply_child(tree, child, roll, changes)
        except SupervisionError as failed:
            failures.append(failed)
            if isinstance(child, ChildSpec):  # the next process of the runner would fail in the same way
                break
    tree.rules.reorder(wanted)
    tree.changed()
    if failures:
        raise SupervisionError("; ".join(map(str, failures)))
    return changes


async def _until_started(tree: Tree) -> None:
    """Wait until the first start of the tree is over."""
    either = [asyncio.create_task(event.wait()) for event in (tree.started, tree.closing)]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in either:
            task.cancel()
    if tree.closing.is_set():
        raise SupervisionError(f"supervisor {tree.id!r} is ending")


async def _apply_child(tree: Tree, child: Spec, roll: bool, changes: Changes) -> None:
    if isinstance(child, SupervisorSpec) and (below := tree.branch(child.id)):
        tree.rules.revise(child)
        await apply(below, child, roll=roll, changes=changes)
    elif child.id not in tree.rules:
        await _add(tree, child)
        changes.started.append(child.id)
    elif tree.rules.state(child.id) in (ChildState.SUSPENDED, ChildState.ENDED):
        tree.rules.revise(child)
        changes.skipped.append(child.id)
    elif roll or child != tree.rules.spec(child.id):
        await replace_child(tree, child.id, child)
        changes.replaced.append(child.id)


async def _add(tree: Tree, spec: Spec) -> None:
    async with tree.locked(spec.id):
        tree.rules.add(spec)
        try:
            await tree.start(spec.id)
        except SupervisionError:
            tree.rules.remove(spec.id)
            tree.current.pop(spec.id, None)
            raise


def _detach(tree: Tree, child_id: str) -> Incarnation | None:
    """Suspend a child. The caller terminates the returned incarnation after it has released the child's lock, because
    the child's siblings may need that lock."""
    tree.rules.suspend(child_id)
    tree.changed()
    return tree.current.pop(child_id, None)
