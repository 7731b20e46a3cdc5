"""Checks the model of the mailbox protocol with Spin: `make model`, or `python formal/check.py [--quick]`.

First the protocol itself, within several bounds: Spin must visit every state and find no error. Then the protocol with
one fault at a time: Spin must find the error that belongs to each. A model that finds none of them proves nothing.
The exit code is 1 if a result is not as expected, and 2 if Spin or gcc is not installed.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).with_name("mailbox.pml")
NEEDS = "make model needs Spin and gcc: apt-get install spin gcc (Debian, Ubuntu), brew install spin (macOS)"

NOTHING = {"CRASHES": 0, "ZOMBIES": 0, "LOST": 0, "LATE": 0, "TROUBLES": 0, "STEERS": 0, "CANCELS": 0, "SENDERS": 1}
"""No faults and no interference. Each search names what it adds."""


@dataclass(frozen=True)
class Search:
    """One run of Spin.

    `claim`: the liveness property to check; without it, the assertions are. `fault`: macros. `expects`: with a fault,
    a part of the violated assertion, or what Spin reports of a violated claim.
    """

    name: str
    bounds: dict[str, int]
    claim: str = ""
    fault: str = ""
    expects: str = "acceptance cycle"
    quick: bool = False

    @property
    def defines(self) -> list[str]:
        """The macros under which the model is compiled."""
        values = [f"-D{name}={value}" for name, value in (NOTHING | self.bounds).items()]
        return values + ([f"-D{fault}" for fault in self.fault.split()])

    @property
    def shown_bounds(self) -> str:
        """The bounds as the table shows them."""
        return " ".join(f"{name.lower()}={value}" for name, value in self.bounds.items())


@dataclass(frozen=True)
class Outcome:
    """What Spin found. `error` is empty if there is none. `complete`: it has visited every state."""

    states: int
    depth: int
    seconds: float
    memory_mb: float
    complete: bool
    error: str


ALL = {"STEERS": 1, "CANCELS": 1}

PROTOCOL = [
    Search("safety", {"CRASHES": 2, "ZOMBIES": 1, "STEERS": 1}),
    Search("safety", {"CRASHES": 2, "ZOMBIES": 1, "CANCELS": 1}),
    Search("safety", {"CRASHES": 1, "LOST": 1, "SENDERS": 2} | ALL),
    Search("safety", {"CRASHES": 1, "ZOMBIES": 1, "TROUBLES": 1, "STEERS": 1}),
    Search("safety", {"CRASHES": 1, "ZOMBIES": 1, "LATE": 1}),
    Search("safety", {"CRASHES": 1, "ZOMBIES": 1, "LOST": 1}),
    Search("safety", {"ZOMBIES": 1, "LATE": 1} | ALL),
    Search("safety", {"CRASHES": 1} | ALL, quick=True),
    Search("every run ends", {"CRASHES": 2, "ZOMBIES": 1}, claim="ends"),
    Search("every run ends", {"CRASHES": 1, "LOST": 1, "TROUBLES": 1}, claim="ends"),
    Search("every run ends", {"ZOMBIES": 1, "LATE": 1}, claim="ends", quick=True),
    Search("a cancel is carried out", {"CRASHES": 1, "ZOMBIES": 1, "CANCELS": 1}, claim="cancelled"),
    Search("a cancel is carried out", {"LOST": 1, "TROUBLES": 1, "CANCELS": 1}, claim="cancelled", quick=True),
]

FAULTS = [
    Search(
        "token not checked", {"CRASHES": 1, "ZOMBIES": 1}, fault="NO_TOKEN_CHECK", expects="who==taken_by", quick=True
    ),
    Search(
        "epoch not checked", {"CRASHES": 1, "ZOMBIES": 1, "LATE": 1}, fault="NO_EPOCH_CHECK", expects="who==taken_by"
    ),
    Search("seq not checked", {"LATE": 1, "TROUBLES": 1}, fault="NO_SEQ_CHECK", expects="seq=="),
    Search("commit not deduplicated", {"LOST": 1}, fault="NO_DEDUP", claim="ends", quick=True),
    Search("claim does not recognise its nonce", {"LOST": 1}, fault="CLAIM_FORGETS_NONCE", claim="ends"),
    Search(
        "claim reads mail in the middle of a turn",
        {"CRASHES": 1, "STEERS": 1},
        fault="CLAIM_READS_MAIL_ALWAYS",
        expects="said==applied",
    ),
    Search("park forgets a result that arrived early", {}, fault="PARK_FORGETS_EARLY_RESULT", claim="ends", quick=True),
    Search("deferred tool begins before it is expected", {}, fault="NO_EXPECT", expects="accepted!=0"),
    Search(
        "a second result is accepted", {"SENDERS": 2}, fault="SECOND_RESULT_ACCEPTED", expects="accepted==0", quick=True
    ),
    Search(
        "deliver does not recognise its message",
        {"LOST": 1},
        fault="DELIVER_FORGETS_MESSAGE",
        expects="was_accepted||(accepted!=g)",
    ),
    Search(
        "complete ignores unread mail",
        {"STEERS": 1},
        fault="COMPLETE_IGNORES_MAIL",
        expects="applied==steered",
        quick=True,
    ),
    Search(
        "steer does not recognise its message",
        {"LOST": 1, "STEERS": 1},
        fault="STEER_FORGETS_MESSAGE",
        expects="applied==steered",
    ),
    Search(
        "commit ignores the cancel flag",
        {"CANCELS": 1},
        fault="COMMIT_IGNORES_CANCEL",
        expects="!(cancel_accepted)",
        quick=True,
    ),
    Search(
        "the cancel of a run that no process holds is lost",
        {"CANCELS": 1},
        fault="CANCEL_LOST_UNLESS_HELD",
        expects="!(cancel_accepted)",
    ),
    Search("journal not recalled", {"TROUBLES": 1}, fault="JOURNAL_IS_NOT_RECALLED", expects="effects<=", quick=True),
    Search(
        "no wake token for a run that is ready again",
        {"CRASHES": 1},
        fault="NO_WAKE",
        expects="(status!=0)||wake",
        quick=True,
    ),
    Search(
        "the wake token is lost with its process",
        {"CRASHES": 1},
        fault="RECLAIM_KEEPS_TOKEN",
        expects="(status!=0)||wake",
    ),
    Search(
        "a late claim is carried out, nothing is released",
        {"LATE": 1},
        fault="LATE_CLAIM_TAKES NO_RELEASE",
        claim="ends",
    ),
    Search("a run that is not executed is not released", {"LATE": 1, "ZOMBIES": 1}, fault="NO_RELEASE", claim="ends"),
]


def run(search: Search) -> Outcome:
    """Let Spin visit all states of the model within the bounds of `search`."""
    with tempfile.TemporaryDirectory(prefix="factorial-model-") as folder:
        began = time.monotonic()
        _call(["spin", *search.defines, "-a", str(MODEL)], folder)
        kind = ["-DNFAIR=3"] if search.claim else ["-DSAFETY", "-DNOCLAIM"]
        optimised = "-O0" if search.quick or search.fault else "-O1"  # where the search is short, gcc takes longer
        _call(["gcc", optimised, "-w", "-DCOLLAPSE", "-DMEMLIM=4000", *kind, "-o", "pan", "pan.c"], folder)
        how = ["-a", "-f", "-N", search.claim] if search.claim else []
        said = _call(["./pan", "-m200000", "-w22", *how], folder)
        return _read(said, time.monotonic() - began)


def _call(command: Sequence[str], folder: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode and command[0] != "./pan":
        raise SystemExit(f"{command[0]} failed: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def _read(said: str, seconds: float) -> Outcome:
    """The outcome that pan printed."""

    def number(pattern: str) -> float:
        found = re.search(pattern, said)
        return float(found[1]) if found else 0.0

    complete = "error: " not in said and "Search not completed" not in said and "errors: " in said
    error = re.search(r"^pan:1: (.*?) \(at depth \d+\)", said, re.MULTILINE)
    return Outcome(
        states=int(number(r"(\d+) states, stored")),
        depth=int(number(r"depth reached (\d+)")),
        seconds=seconds,
        memory_mb=number(r"([\d.]+)\s+total actual memory usage"),
        complete=complete,
        error=error[1] if error else "",
    )


def is_as_expected(search: Search, outcome: Outcome) -> bool:
    """The protocol must have no error in any state, and a fault must have its own error."""
    return search.expects in outcome.error if search.fault else outcome.complete and not outcome.error


def row(search: Search, outcome: Outcome) -> str:
    """One line of the table."""
    verdict = outcome.error or ("no error" if outcome.complete else "NOT COMPLETE")
    remark = "" if is_as_expected(search, outcome) else "   <- NOT AS EXPECTED"
    return (
        f"{search.name:52} {search.shown_bounds:50} {outcome.states:>9,} {outcome.depth:>6} {outcome.seconds:>5.0f} s"
        f" {outcome.memory_mb:>6.0f} MB  {verdict[:100]}{remark}"
    )


def main(arguments: Sequence[str]) -> int:
    """Run all searches, or the quick ones, and print the table."""
    if not (shutil.which("spin") and shutil.which("gcc")):
        print(NEEDS)
        return 2
    quick, good = "--quick" in arguments, True
    heading = f"{{:52}} {'bounds (others: 0)':50} {'states':>9} {'depth':>6} {'time':>7} {'memory':>9}  found"
    with ThreadPoolExecutor(max_workers=2) as pool:
        for title, searches in {"the protocol": PROTOCOL, "the protocol with a fault": FAULTS}.items():
            print(heading.format(title))
            chosen = [search for search in searches if search.quick or not quick]
            for search, outcome in zip(chosen, pool.map(run, chosen), strict=True):
                good = good and is_as_expected(search, outcome)
                print(row(search, outcome), flush=True)
            print()
    print("as expected" if good else "NOT as expected: see above")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
