"""What our commands share: how they are told where a system is, and how a mistake is told.

Used by `__main__.py` and by `supervisor/__main__.py`.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from factorial._core.redact import hide_secrets
from factorial.config import RedisConfig, SystemConfig
from factorial.config.server import check_url
from factorial.errors import ConfigError, FactorialError

__all__ = ["WHERE_HELP", "Parser", "add_where", "exit_code", "redis_of", "show"]

WHERE_HELP = "Without --config and --redis, the server is that of REDIS_URL or REDIS_HOST, else localhost:6379."


class Parser(argparse.ArgumentParser):
    """Tells a mistake as we tell all of them."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def add_where(parser: argparse.ArgumentParser) -> None:
    """The options that say where the mailboxes are."""
    where = parser.add_argument_group("where the system is")
    where.add_argument("--config", metavar="FILE", help="the system's configuration; only its [redis] is used")
    where.add_argument("--redis", metavar="URL", help="the server that holds the mailboxes")
    where.add_argument("--namespace", metavar="NS", help="its namespace there (default: factorial)")


def redis_of(options: argparse.Namespace) -> RedisConfig:
    """Where the mailboxes are. The agents of a configuration are not imported."""
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
    """Run the command, and give its exit code. A mistake is told in one line; 2 if it is in what was asked."""
    try:
        return command()
    except FactorialError as error:
        message = hide_secrets(" ".join(str(error).split()))
        print(f"factorial: {message}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:  # once a system runs, it is a request to stop
        return 130
    except BrokenPipeError:  # whoever reads our output has seen enough, as in `status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return 128 + signal.SIGPIPE


def show(text: str) -> None:
    """Print, also where the encoding has no lines to draw a tree with."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(str.maketrans("├└│─…✓✗", "|`|-~+!")).encode(encoding, "replace").decode(encoding)
    if text:
        print(text)
