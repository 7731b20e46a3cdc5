"""What an operator may do to a running tree, beyond what OTP's rules do by themselves.

Each holds the lock of the child that it concerns, so it waits for a restart under way, and the other way round. Raises
`SupervisionError` where something cannot be started; what ran before goes on then.
"""

import asyncio
from dataclasses import dataclass, field

from factorial.errors import SupervisionError
from factorial.supervisor.spec import ChildSpec, Spec, SupervisorSpec
from factorial.supervisor.strategy import ChildState
from factorial.supervisor.tree import Member, Tree

__all__ = ["Changes", "apply", "replace_child", "resume_child", "start_child", "suspend_child", "terminate_child"]


@dataclass(frozen=True, slots=True)
class Changes:
    """What was done, by the ids of the children."""

    stopped: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    resting: list[str] = field(default_factory=list)
    """They were suspended, or had ended: they are left so."""


async def replace_child(tree: Tree, child_id: str, spec: Spec | None = None) -> None:
    """Extension: start a successor, from `spec` if it is given, and when it is ready, drain the predecessor.

    It counts as no restart. If the successor does not get ready, the predecessor stays.
    """
    async with tree.locked(child_id):
        predecessor = tree.current.get(child_id)
        successor = tree.bear(spec or tree.rules.spec(child_id))
        await tree.until_up(successor)
        tree.rules.revise(successor.spec)
        tree.rules.started(child_id)
        tree.current[child_id] = successor
    if predecessor is not None:
        await tree.terminate(predecessor)


async def suspend_child(tree: Tree, child_id: str) -> None:
    """Terminate a child, and keep it for `resume_child` (OTP's `terminate_child`).

    A supervisor that is not there at the moment is left to its parent; but its children rest when it comes.
    """
    spec = tree.rules.spec(child_id)
    if isinstance(spec, SupervisorSpec):
        tree.resting.update(process.id for process in spec.processes)
        return
    tree.resting.add(child_id)
    async with tree.locked(child_id):
        member = _take_away(tree, child_id)
    if member is not None:
        await tree.terminate(member)


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
        tree.resting.discard(child_id)


async def start_child(tree: Tree) -> str:
    """Start one more instance of a simple_one_for_one supervisor's child (OTP), and give its id.

    If it does not get ready it is forgotten.
    """
    spec = tree.rules.instance()
    await _add(tree, spec)
    return spec.id


async def terminate_child(tree: Tree, child_id: str) -> None:
    """Terminate a child, and forget it."""
    async with tree.locked(child_id):
        member = _take_away(tree, child_id)
    if member is not None:
        await tree.terminate(member)
    async with tree.locked(child_id):
        tree.rules.remove(child_id)
        tree.last_exits.pop(child_id, None)
        tree.changed()


async def apply(tree: Tree, spec: SupervisorSpec, *, roll: bool, changes: Changes | None = None) -> Changes:
    """Make the tree what `spec` says, one child after the other: stop what is gone, start what is new, replace what has
    changed; with `roll`, replace all that runs. Gives what was done, also to `changes` as it happens.

    A failure ends it for the children of one supervisor; those of the others go on, and it is raised in the end.
    """
    changes = changes or Changes()
    await _started(tree)
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
            if isinstance(child, ChildSpec):  # the next one is made of the same stuff
                break
    tree.rules.reorder(wanted)
    tree.changed()
    if failures:
        raise SupervisionError("; ".join(map(str, failures)))
    return changes


async def _started(tree: Tree) -> None:
    """Wait for the end of the tree's first start."""
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
        changes.resting.append(child.id)
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


def _take_away(tree: Tree, child_id: str) -> Member | None:
    """Let a child rest. What is alive of it is to be terminated, without its lock: its siblings may need that."""
    tree.rules.suspend(child_id)
    tree.changed()
    return tree.current.pop(child_id, None)
