"""Describes a tree as plain data, in the shape that `nodes` documents."""

from factorial.supervisor.rules.spec import ExitReason, SupervisorSpec
from factorial.supervisor.rules.strategy import ChildState
from factorial.supervisor.tree.incarnation import Incarnation
from factorial.supervisor.tree.nodes import Node
from factorial.supervisor.tree.tree import Tree

__all__ = ["describe"]


def describe(tree: Tree) -> Node:
    """The report node of the supervisor, with all children below it."""
    flags, now = tree.rules.flags, tree.now()
    state = "draining" if tree.closing.is_set() else "running" if tree.started.is_set() else "starting"
    return {
        "id": tree.id,
        "type": "supervisor",
        "state": state,
        "strategy": str(flags.strategy),
        "restarts": tree.rules.restarts(now),
        "intensity": flags.intensity,
        "period": flags.period,
        **_last_exit(tree, None),
        "children": [_child(tree, child_id) for child_id in tree.order],
    }


def _child(tree: Tree, child_id: str) -> Node:
    spec, current = tree.rules.spec(child_id), tree.current.get(child_id)
    last_exit = _last_exit(tree, child_id)
    if below := tree.branch(child_id):
        return describe(below) | last_exit
    about = {
        "id": child_id,
        "type": str(spec.type),
        "state": _state(tree, child_id),
        "restarts": tree.rules.restarts_of(child_id, tree.now()),
        **last_exit,
    }
    if isinstance(spec, SupervisorSpec):
        flags = spec.flags
        return about | {
            "strategy": str(flags.strategy),
            "restarts": 0,
            "intensity": flags.intensity,
            "period": flags.period,
            "children": [],
        }
    leaving = [
        _process(tree, each) for each in tree.incarnations.alive if each.spec.id == child_id and each is not current
    ]
    if current and not current.exit:
        about |= _process(tree, current)
    elif about["state"] == "draining":
        about |= leaving.pop()
    return about | {"predecessors": leaving}


def _process(tree: Tree, incarnation: Incarnation) -> Node:
    child = incarnation.child
    uptime = round(tree.now() - incarnation.started_at, 1)
    return {"process": child.process, "pid": child.pid, "uptime": uptime, **child.report()}


def _last_exit(tree: Tree, child_id: str | None) -> Node:
    exit, at = tree.incarnations.last_exits.get(child_id or "", (None, 0.0))
    if exit is None:
        return {"last_exit": None, "last_exit_ago": None}
    # The exit code of a child that ended as requested is of no interest.
    as_requested = exit.reason is ExitReason.SHUTDOWN and not exit.why
    return {"last_exit": str(exit.reason) if as_requested else exit.how, "last_exit_ago": round(tree.now() - at, 1)}


def _state(tree: Tree, child_id: str) -> str:
    current = tree.current.get(child_id)
    match tree.rules.state(child_id):
        case ChildState.SUSPENDED:
            return "draining" if any(each.spec.id == child_id for each in tree.incarnations.alive) else "drained"
        case ChildState.ENDED:
            exit, _ = tree.incarnations.last_exits[child_id]
            return "gave up" if exit.why and isinstance(tree.rules.spec(child_id), SupervisorSpec) else "ended"
        case ChildState.RESTARTING:
            return "restarting"
        case _ if current is None or (not current.is_up and current.exit is None):
            return "starting"
        case _ if current.exit:
            return "restarting"
        case _:
            return "draining" if current.is_asked else "running"
