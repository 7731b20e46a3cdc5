"""`python -m factorial VERB`, or `factorial VERB`: commands about a system as a whole. There is one verb, `doctor`.

Exit code: 0 if all is well, 1 if something is wrong or the server cannot be asked, 2 if it was asked for in a wrong
way, 130 after Ctrl-C. A mistake is told in one line on standard error.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from factorial.commandline import WHERE_HELP, Parser, add_where, exit_code, redis_of

__all__ = ["main"]

_DOCTOR_HELP = """\
It changes nothing, and may be used while the system works: what looks wrong is looked at again, and what was only under
way is no finding. A namespace with a million runs takes some minutes.

exit code: 0 all is well
           1 something is wrong, or the server cannot be asked
           2 it was asked for in a wrong way, such as for a namespace that is not there
           130 Ctrl-C

examples:
  factorial doctor --config system.toml
  factorial doctor --redis redis://db1:6379/0 --namespace prod --json

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return exit_code(lambda: _obey(_parse(sys.argv[1:] if arguments is None else list(arguments))))


def _parse(arguments: list[str]) -> argparse.Namespace:
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:  # the whole parser would name its own help, which has no options
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def _parser() -> Parser:
    parser = Parser(prog="factorial", description="Commands about a Factorial system.", allow_abbrev=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    doctor = verbs.add_parser(
        "doctor",
        help="check that the system keeps its promise",
        description="Check, in what is stored, that no task is lost, and whatever else is promised of tasks.",
        epilog=_DOCTOR_HELP + WHERE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_where(doctor)
    doctor.add_argument("--quick", action="store_true", help="leave the stored events out, which take longest to read")
    doctor.add_argument("--json", action="store_true", help="everything, as JSON")
    doctor.set_defaults(parser=doctor)
    return parser


def _obey(options: argparse.Namespace) -> int:
    from factorial.doctor import run_doctor

    code = asyncio.run(run_doctor(redis_of(options), events=not options.quick, as_json=options.json))
    sys.stdout.flush()  # here, where it is known what to do if nobody reads it any more
    return code


if __name__ == "__main__":
    sys.exit(main())
