"""`python -m factorial.supervisor config.toml [--check]`

Exit code 0 after a graceful stop, 2 for a mistake in the configuration or an agent, 1 for anything else. A mistake is
told in one line on standard error, and nothing is left running.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from factorial.config import SystemConfig
from factorial.errors import ConfigError, FactorialError
from factorial.supervisor.logs import log_to_stderr
from factorial.supervisor.system import plan, run_system

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m factorial.supervisor",
        description="Run a Factorial system: the processes of every runner, under supervision.",
        epilog="SIGTERM or Ctrl-C once: stop gracefully; twice: stop now.",
    )
    parser.add_argument("config", metavar="config.toml", help="the system's configuration")
    parser.add_argument("--check", action="store_true", help="validate the file and its agents, and start nothing")
    options = parser.parse_args(arguments)
    try:
        config = SystemConfig.from_toml(options.config)
        if options.check:
            runners = plan(config)
            processes = sum(runner.process_count for runner in runners.values())
            print(f"{options.config}: good; agents: {', '.join(runners)}; processes: {processes}")
            return 0
        log_to_stderr("supervisor")
        asyncio.run(run_system(config))
    except FactorialError as error:
        message = " ".join(str(error).split())
        print(f"factorial: {message}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:  # before anything was started: from then on it is a request to stop
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
