"""`python -m factorial.supervisor config.toml` runs a system; `python -m factorial.supervisor status` and the other
verbs operate one that runs, from anywhere.

Exit code of a run: 0 after a graceful stop, 2 for a mistake in the configuration or an agent, 1 for anything else. Of a
verb: 0 if it was done; 2 if it cannot be done as it was asked for: wrong words, a wrong count, an unknown target; 1 if
it could not be done; 130 if Ctrl-C ended the waiting. A mistake is told in one line on standard error, and nothing is
left running.
"""

import argparse
import asyncio
import difflib
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, get_args

from factorial._core.json import dump_json
from factorial.commandline import WHERE_HELP, Parser, add_where, exit_code, redis_of
from factorial.config import LoggingConfig, SystemConfig
from factorial.config.bounds import LogFormat, LogLevel
from factorial.config.toml import naming
from factorial.errors import ConfigError
from factorial.supervisor.process.init import as_init
from factorial.telemetry.logs import logging_to_stderr

__all__ = ["main"]

_PROGRAM = "python -m factorial.supervisor"

_RUN_HELP = """\
signals to a running system:
  SIGTERM, Ctrl-C   stop gracefully; the second time: stop now
  SIGHUP            read the file again, do what has changed, and replace all processes one by one
  SIGUSR1           write all stacks and the tree to standard error

to operate a running system, from this or another machine:
  %(prog)s status | drain | resume | scale | restart | stop     (each has its own --help)

examples:
  %(prog)s system.toml --check
  %(prog)s system.toml --log-level debug
  %(prog)s status --config system.toml

A file that is named like a verb: write ./status"""

_VERB_HELP = (
    """\
exit code: {codes}

examples:
{examples}

"""
    + WHERE_HELP
)

_CODES = """\
0 it was done
           1 it could not be done, or was not done in time
           2 it was asked for in a wrong way: wrong words, a wrong count, an unknown target
           130 Ctrl-C: it is not waited for any more, and goes on"""
_STATUS_CODES = """\
0 a supervisor is alive
           1 none is, or the server cannot be asked
           2 it was asked for in a wrong way"""

_TARGET = "the id of a group, a runner (planner) or a process (planner.2); without it, everything"

_VERBS: dict[str, tuple[str, Sequence[str]]] = {
    "status": (
        "Show how the supervisors and their processes are, and how much work waits.",
        ["status --config system.toml", "status --redis redis://db1:6379/0 --namespace prod", "status --json"],
    ),
    "drain": (
        "Have processes give their tasks back and end. They stay away until `resume`.",
        ["drain --config system.toml", "drain planner --supervisor db1-3fa9c2", "drain planner.2 --all"],
    ),
    "resume": (
        "Start again what was drained, or has given up.",
        ["resume --config system.toml", "resume planner --supervisor db1-3fa9c2"],
    ),
    "restart": (
        "Replace processes one by one: each successor is ready before its predecessor is drained.",
        ["restart --config system.toml", "restart planner", "restart planner.2 --timeout 600"],
    ),
    "scale": (
        "Have so many processes of a runner, until the configuration is read again.",
        ["scale planner 4 --config system.toml"],
    ),
    "stop": (
        "Stop a whole system, and wait for its end. Its tasks are given back, and go on when it is started again.",
        ["stop --config system.toml", "stop --now --all"],
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    with ExitStack() as output:  # how a mistake is told is as the configuration says, once that has been read
        words = sys.argv[1:] if arguments is None else list(arguments)
        return exit_code(lambda: _obey(words, output))


def _obey(words: list[str], output: ExitStack) -> int:
    if words and words[0] in _VERBS:
        return _operate(_verb_parser(words[0]).parse_args(words[1:]), words[0])
    _refuse_slip(words)
    return _run(_run_parser().parse_args(words), output)


def _refuse_slip(words: list[str]) -> None:
    """Raise `ConfigError` if the first of `words` is meant as a verb: it is no file, and almost a verb."""
    word = words[0] if words else ""
    near = difflib.get_close_matches(word, _VERBS, n=1)
    if near and word.isalpha() and not os.path.exists(word):
        raise ConfigError(f"there is no verb {word!r}; did you mean {near[0]!r}?")


def _run_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Run a Factorial system: the processes of every runner, under supervision.",
        epilog=_RUN_HELP.replace("%(prog)s", _PROGRAM),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="config.toml", help="the system's configuration")
    parser.add_argument("--check", action="store_true", help="validate the file and its agents, and start nothing")
    parser.add_argument("--json", action="store_true", help="with --check: print the runners as JSON")
    parser.add_argument(
        "--log-level", choices=get_args(LogLevel),
        help="of the supervisor and its processes (default: FACTORIAL_LOG_LEVEL, else [logging] of the file)",
    )  # fmt: skip
    parser.add_argument(
        "--log-format", choices=get_args(LogFormat),
        help="lines for people, or JSON (default: FACTORIAL_LOG_FORMAT, else [logging] of the file)",
    )  # fmt: skip
    return parser


def _verb_parser(verb: str) -> argparse.ArgumentParser:
    about, examples = _VERBS[verb]
    parser = Parser(
        prog=f"{_PROGRAM} {verb}",
        description=about,
        epilog=_VERB_HELP.format(
            examples="\n".join(f"  {_PROGRAM} {example}" for example in examples),
            codes=_STATUS_CODES if verb == "status" else _CODES,
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if verb in ("drain", "resume", "restart"):
        parser.add_argument("target", nargs="?", default="", metavar="TARGET", help=_TARGET)
    if verb == "scale":
        parser.add_argument("runner", metavar="RUNNER", help="the name of its agent")
        parser.add_argument("processes", metavar="N", type=_count, help="how many processes it is to have, 1 to 1000")
    if verb == "stop":
        parser.add_argument("--now", action="store_true", help="do not wait for the next step of each task")
    add_where(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--supervisor", metavar="NAME", default="", help="this one of several supervisors")
    if verb == "status":
        parser.add_argument("--json", action="store_true", help="everything, as JSON")
    else:
        which.add_argument("--all", action="store_true", help="all supervisors")
        parser.add_argument(
            "--timeout", metavar="SECONDS", type=_seconds, default=120.0,
            help="how long to wait until it is done (default: 120); what is not begun by then never is",
        )  # fmt: skip
    return parser


def _count(text: str) -> int:
    from factorial.supervisor.tree.plan import MOST_PROCESSES

    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_PROCESSES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of processes: use 1 to {MOST_PROCESSES}; to have none, drain the runner"
        )
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to 86400")
    return seconds


def _run(options: argparse.Namespace, output: ExitStack) -> int:
    if options.json and not options.check:
        raise ConfigError("--json goes with --check; for a running system: status --json")
    if not options.check:
        as_init()
    from factorial.supervisor.service.system import run_system
    from factorial.supervisor.tree.plan import load_runners

    config = SystemConfig.from_toml(options.config)
    logs = _logs(config.logging, options)
    if not options.check:  # before the agents' modules are imported, which may set up logging themselves
        output.enter_context(logging_to_stderr("supervisor", logs))
    with naming(options.config):
        runners = load_runners(config)
    if options.check:
        counts = {name: {"agent": one.agent, "processes": one.process_count} for name, one in runners.items()}
        if options.json:
            print(dump_json({"runners": counts}).decode())
        else:
            processes = sum(runner.process_count for runner in runners.values())
            print(f"{options.config}: good; agents: {', '.join(runners)}; processes: {processes}")
        return 0
    asyncio.run(run_system(config, runners, path=options.config, logs=logs))
    return 0


def _logs(config: LoggingConfig, options: argparse.Namespace) -> LoggingConfig:
    """How it logs: as the command says, else the environment, else the file."""
    said = {"level": options.log_level, "format": options.log_format}
    return replace(config.resolved, **{name: value for name, value in said.items() if value is not None})


def _operate(options: argparse.Namespace, verb: str) -> int:
    from factorial.supervisor.operate.remote import Selection, send_order, show_status

    redis = redis_of(options)
    if verb == "status":
        code = asyncio.run(show_status(redis, Selection(options.supervisor), as_json=options.json))
        sys.stdout.flush()  # here, where it is known what to do if nobody reads it any more
        return code
    order: dict[str, Any] = {"verb": verb}
    for name in ("target", "runner", "processes", "now"):
        if hasattr(options, name):
            order[name] = getattr(options, name)
    return asyncio.run(send_order(redis, Selection(options.supervisor, options.all), order, patience=options.timeout))


if __name__ == "__main__":
    sys.exit(main())
