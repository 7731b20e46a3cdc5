"""`python -m factorial.supervisor system.toml` runs a system. `python -m factorial.supervisor VERB` operates one that
runs, from anywhere.

Exit code of a run: 0 after a graceful stop, 2 for an error in the configuration or an agent, 1 for anything else. Each
verb's help has its exit codes. An error is printed in one line on standard error, and no process is left running.
"""

import argparse
import asyncio
import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import get_args

from factorial._core.json import dump_json
from factorial.cli.common import SUPERVISOR, Parser, exit_code
from factorial.cli.verbs import find_verbs
from factorial.config import LoggingConfig, SystemConfig
from factorial.config.bounds import LogFormat, LogLevel
from factorial.config.toml import naming
from factorial.errors import ConfigError

__all__ = ["main"]

_RUN_HELP = """\
signals to a running system:
  SIGTERM, Ctrl-C   stop gracefully; the second time: stop now
  SIGHUP            read the file again, apply what has changed, and replace all processes one by one
  SIGUSR1           write all stacks and the tree to standard error

to operate a running system, from this or another machine:
  {program} {verbs}     (each has its own --help)

examples:
  {program} system.toml --check
  {program} system.toml --log-level debug
  {program} status --config system.toml

For a file that is named like a verb, write ./status"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    with ExitStack() as output:  # holds the logging settings of the configuration until errors are printed
        return exit_code(lambda: _run(words, output))


def _run(words: list[str], output: ExitStack) -> int:
    verbs = find_verbs(SUPERVISOR)
    if words and words[0] in verbs:
        parser = Parser(prog=f"{SUPERVISOR} {words[0]}", allow_abbrev=False)
        verbs[words[0]].fill(parser)
        return verbs[words[0]].run(parser.parse_args(words[1:]))
    _check_not_a_verb(words, verbs)
    return _run_system(_parser(verbs).parse_args(words), output)


def _check_not_a_verb(words: list[str], verbs: Iterable[str]) -> None:
    """Raise `ConfigError` if the first of `words` is probably a misspelt verb: similar to one, and not a file."""
    word = words[0] if words else ""
    near = difflib.get_close_matches(word, verbs, n=1)
    if near and word.isalpha() and not os.path.exists(word):
        raise ConfigError(f"there is no verb {word!r}; did you mean {near[0]!r}?")


def _parser(verbs: Iterable[str]) -> argparse.ArgumentParser:
    parser = Parser(
        prog=SUPERVISOR,
        description="Run a Factorial system: the processes of every runner, under supervision.",
        epilog=_RUN_HELP.format(program=SUPERVISOR, verbs=" | ".join(verbs)),
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
        help="lines of text, or JSON (default: FACTORIAL_LOG_FORMAT, else [logging] of the file)",
    )  # fmt: skip
    return parser


def _run_system(options: argparse.Namespace, output: ExitStack) -> int:
    from factorial.supervisor.process.init import as_init
    from factorial.telemetry.logs import logging_to_stderr

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
    """The logging settings: those of the options, else of the environment, else of the file."""
    given = {"level": options.log_level, "format": options.log_format}
    return replace(config.resolved, **{name: value for name, value in given.items() if value is not None})
