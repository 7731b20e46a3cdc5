"""`factorial VERB`, or `python -m factorial VERB`: commands about a system as a whole.

Exit code: 0 if all is well, 1 if something is wrong or the server cannot be reached, 2 for wrong arguments, 130 after
Ctrl-C. An error is printed in one line on standard error.
"""

import argparse
import sys
from collections.abc import Sequence

from factorial.cli.common import FACTORIAL, Parser, exit_code
from factorial.cli.verbs import find_verbs

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    return exit_code(lambda: _run(words))


def _run(words: list[str]) -> int:
    options, unknown = _parser().parse_known_args(words)
    if unknown:  # reported by the verb's own parser, so that the message names the verb's help
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    code: int = options.verb.run(options)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=FACTORIAL, description="Commands about a Factorial system.", allow_abbrev=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, verb in find_verbs(FACTORIAL).items():
        verb.fill(verbs.add_parser(name, help=verb.summary, allow_abbrev=False))
    return parser
