"""What the commands share: verbs, options that name a server, and how errors are printed."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from factorial._core.redact import hide_secrets
from factorial.config import RedisConfig, SystemConfig
from factorial.config.server import check_url
from factorial.errors import ConfigError, FactorialError

__all__ = ["FACTORIAL", "SUPERVISOR", "Parser", "Verb", "exit_code", "redis_of", "show"]

FACTORIAL = "factorial"
SUPERVISOR = "python -m factorial.supervisor"
"""The programs that have verbs."""

_WHERE = "Without --config and --redis, the server is that of REDIS_URL or REDIS_HOST, else localhost:6379."


class Parser(argparse.ArgumentParser):
    """Raises `ConfigError` for wrong arguments, so that they are printed like all other errors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """A verb of one of the programs."""

    program: str
    name: str
    summary: str
    """What it does, in the list of verbs."""
    description: str
    """What it does, in its own help."""
    exit_codes: Sequence[str]
    """Lines such as `0 it was done`."""
    examples: Sequence[str]
    """Arguments of the program, beginning with the verb."""
    notes: str = ""
    """A paragraph of its own help."""
    needs_server: bool = True
    """It has the options that name a server."""
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    """Adds its own options."""
    run: Callable[[argparse.Namespace], int]
    """Runs it, and returns the exit code. Raises `FactorialError`."""

    def fill(self, parser: argparse.ArgumentParser) -> None:
        """Give `parser` the help and the options of this verb."""
        codes = "\n           ".join(self.exit_codes)
        examples = "\n".join(f"  {self.program} {example}" for example in self.examples)
        where = _WHERE if self.needs_server else ""
        paragraphs = [self.notes, f"exit code: {codes}", f"examples:\n{examples}", where]
        parser.description = self.description
        parser.epilog = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        if self.needs_server:
            _add_where(parser)
        self.add_options(parser)
        parser.set_defaults(verb=self, parser=parser)


def _add_where(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the server and the namespace."""
    where = parser.add_argument_group("where the system is")
    where.add_argument("--config", metavar="FILE", help="the system's configuration; only its [redis] is used")
    where.add_argument("--redis", metavar="URL", help="the server that holds the namespace")
    where.add_argument("--namespace", metavar="NS", help="the namespace on that server (default: factorial)")


def redis_of(options: argparse.Namespace) -> RedisConfig:
    """The server and the namespace that the options name. The agents of a configuration are not imported."""
    if options.config is None:
        if options.redis is not None:
            try:
                check_url("--redis", options.redis)
            except ValueError as invalid:
                raise ConfigError(str(invalid)) from None
        given = {"url": options.redis, "namespace": options.namespace}
        return RedisConfig(**{name: value for name, value in given.items() if value is not None})
    if options.redis is not None or options.namespace is not None:
        raise ConfigError("--config says where the system is: leave --redis and --namespace out, or --config")
    return SystemConfig.from_toml(options.config).redis


def exit_code(command: Callable[[], int]) -> int:
    """Run the command and return its exit code. An error is printed in one line; 2 if it is in the arguments or in a
    configuration, else 1."""
    try:
        code = command()
        sys.stdout.flush()  # here, where a BrokenPipeError is handled
        return code
    except FactorialError as error:
        message = hide_secrets(" ".join(str(error).split()))
        print(f"factorial: {message}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:  # a running system handles SIGINT itself
        return 130
    except BrokenPipeError:  # the reader of the output has ended, as in `status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the interpreter complains at exit
        return 128 + signal.SIGPIPE


def show(text: str) -> None:
    """Print `text`. Lines of a drawing are replaced where the encoding does not have them."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(str.maketrans("├└│─…✓✗", "|`|-~+!")).encode(encoding, "replace").decode(encoding)
    if text:
        print(text)
