"""Operates a running system from anywhere: `python -m factorial.supervisor status|drain|resume|restart|scale|stop`."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from factorial._core.json import dump_json
from factorial.cli.common import SUPERVISOR, Verb, redis_of, show
from factorial.config import RedisConfig
from factorial.errors import ConfigError, FactorialError

if TYPE_CHECKING:
    from factorial.supervisor.operate.remote import Selection, Supervisor

__all__ = ["VERBS"]

_CODES = (
    "0 it was done",
    "1 it could not be done, or was not done in time",
    "2 the command was wrong: wrong words, a wrong count, an unknown target",
    "130 Ctrl-C: the command does not wait any longer; the order may still be carried out",
)
_STATUS_CODES = (
    "0 a supervisor is alive",
    "1 no supervisor is alive, or the server cannot be reached",
    "2 the command was wrong",
)
_NOTES = """\
An order that has not started when the timeout expires is dropped. One that has started runs to its end, even if you
press Ctrl-C. If several supervisors run, pick one with `--supervisor NAME`, or use `--all`."""


def _add_status_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--supervisor", metavar="NAME", default="", help="show only this supervisor")
    parser.add_argument("--json", action="store_true", help="print everything, as JSON")


def _add_order_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--supervisor", metavar="NAME", default="", help="the supervisor, if several run")
    which.add_argument("--all", action="store_true", help="all supervisors")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=120.0,
        help="how long to wait until it is done (default: 120)",
    )  # fmt: skip


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", nargs="?", default="", metavar="TARGET",
        help="a group, a runner (planner) or a process (planner.2); without it, everything",
    )  # fmt: skip
    _add_order_options(parser)


def _add_scale_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runner", metavar="RUNNER", help="the name of its agent")
    parser.add_argument("processes", metavar="N", type=_count, help="the number of its processes, 1 to 1000")
    _add_order_options(parser)


def _add_stop_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--now", action="store_true", help="do not wait for the next step of each task")
    _add_order_options(parser)


def _count(text: str) -> int:
    from factorial.supervisor.tree.plan import MOST_PROCESSES

    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_PROCESSES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of processes: use 1 to {MOST_PROCESSES}; to have none, drain the runner"
        )
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds: use more than 0, up to 86400")
    return seconds


def _status(options: argparse.Namespace) -> int:
    from factorial.supervisor.operate.remote import Selection, read_status

    status = asyncio.run(read_status(redis_of(options), Selection(options.supervisor)))
    if options.json:
        print(dump_json(status.as_json()).decode())
    else:
        show(status.as_text())
    if status.missing is not None:
        raise status.missing
    return 0 if status.is_any_alive else 1


def _order(verb: str, fields: Sequence[str], options: argparse.Namespace) -> int:
    from factorial.supervisor.operate.remote import Selection

    order = {"verb": verb, **{name: getattr(options, name) for name in fields}}
    selection = Selection(options.supervisor, options.all)
    return asyncio.run(_send(redis_of(options), selection, order, options.timeout))


async def _send(redis: RedisConfig, selection: "Selection", order: Mapping[str, Any], patience: float) -> int:
    from factorial.supervisor.operate.remote import reach

    async with reach(redis, selection) as supervisors:
        return max(await asyncio.gather(*(_send_to(each, order, patience) for each in supervisors)))


async def _send_to(supervisor: "Supervisor", order: Mapping[str, Any], patience: float) -> int:
    """Send the order to one supervisor, and print its answer. Returns the exit code for this supervisor."""
    from factorial.supervisor.operate.verbs import summary

    try:
        print(f"{supervisor.name}: {await supervisor.carry_out(order, patience)}", flush=True)
    except FactorialError as failure:
        print(f"factorial: {supervisor.name}: {failure}", file=sys.stderr)
        return 2 if isinstance(failure, ConfigError) else 1
    except asyncio.CancelledError:
        print(f"factorial: stopped waiting; {supervisor.name} may still carry out: {summary(order)}", file=sys.stderr)
        raise
    return 0


def _order_verb(
    name: str,
    description: str,
    add_options: Callable[[argparse.ArgumentParser], None],
    fields: Sequence[str],
    examples: Sequence[str],
) -> Verb:
    """A verb that sends an order. `fields`: the options that the order contains."""
    return Verb(
        program=SUPERVISOR,
        name=name,
        summary=description,
        description=description,
        notes=_NOTES,
        exit_codes=_CODES,
        examples=examples,
        add_options=add_options,
        run=partial(_order, name, fields),
    )


VERBS = (
    Verb(
        program=SUPERVISOR,
        name="status",
        summary="show the supervisors, their processes, and how much work is queued",
        description="Show the supervisors, their processes, and how much work is queued.",
        exit_codes=_STATUS_CODES,
        examples=["status --config system.toml", "status --redis redis://db1:6379/0 --namespace prod", "status --json"],
        add_options=_add_status_options,
        run=_status,
    ),
    _order_verb(
        "drain",
        "Drain processes: they release their tasks and end. They stay down until `resume`.",
        _add_target,
        ["target"],
        ["drain --config system.toml", "drain planner --supervisor db1-3fa9c2", "drain planner.2 --all"],
    ),
    _order_verb(
        "resume",
        "Start what was drained, or has given up.",
        _add_target,
        ["target"],
        ["resume --config system.toml", "resume planner --supervisor db1-3fa9c2"],
    ),
    _order_verb(
        "restart",
        "Replace processes one by one: each successor is ready before its predecessor is drained.",
        _add_target,
        ["target"],
        ["restart --config system.toml", "restart planner", "restart planner.2 --timeout 600"],
    ),
    _order_verb(
        "scale",
        "Set the number of processes of a runner, until the configuration is read again.",
        _add_scale_options,
        ["runner", "processes"],
        ["scale planner 4 --config system.toml"],
    ),
    _order_verb(
        "stop",
        "Stop a system, and wait until it has ended. Its tasks are released, and continue when it is started again.",
        _add_stop_options,
        ["now"],
        ["stop --config system.toml", "stop --now --all"],
    ),
)
