"""`make mutants`: puts one fault at a time into a copy of the package, and runs the tests that must fail then.

First the same tests pass without a fault. The exit code is 1 if they do not, or if a fault survives. A test that does
not end counts as one that has failed, and is counted apart: such a fault may only have been slow.
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
from queue import SimpleQueue

from tests.mutants.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 2
PATIENCE = 180.0
"""Seconds after which a test that does not end counts as one that has failed."""


@dataclass(frozen=True)
class Verdict:
    """The result of the tests: whether all passed, the first failure, the end of the output, and whether they were
    stopped because they did not end."""

    passed: bool
    failure: str
    said: str
    timed_out: bool = False


def copy_of_the_package(folder: Path) -> Path:
    """Copy what the tests need to `folder`."""
    for part in ("factorial", "tests", "examples"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run_tests(folder: Path, tests: Sequence[str]) -> Verdict:
    """Run `tests` in the copy, up to the first failure."""
    command = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        "-x",
        "-q",
        "-rfE",
        "--no-header",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return Verdict(False, f"{tests[0]} (it does not end)", "", timed_out=True)
    failures = re.findall(r"^(?:FAILED|ERROR) (tests/.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode > 1:  # nothing was run: no verdict on the fault
        raise SystemExit(f"pytest could not run {' '.join(tests)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return Verdict(done.returncode == 0, failures[0] if failures else "", done.stdout[-3000:])


def try_fault(fault: Fault, copies: "SimpleQueue[Path]") -> tuple[Verdict, float]:
    """Put `fault` into a free copy, run its tests, and restore the copy. Returns the seconds, too."""
    folder, began = copies.get(), time.monotonic()
    file = folder / "factorial" / fault.file
    whole = file.read_text(encoding="utf-8")
    try:
        file.write_text(whole.replace(fault.text, fault.replacement), encoding="utf-8")
        return run_tests(folder, fault.tests), time.monotonic() - began
    finally:
        file.write_text(whole, encoding="utf-8")
        copies.put(folder)


def main(names: Sequence[str]) -> int:
    """Try the faults whose name contains one of `names`, or all of them."""
    chosen = [fault for fault in FAULTS if not names or any(name in fault.name for name in names)]
    if not chosen:
        raise SystemExit(f"no fault is called anything like {', '.join(names)}")
    for fault in chosen:
        if (ROOT / "factorial" / fault.file).read_text(encoding="utf-8").count(fault.text) != 1:
            raise SystemExit(f"{fault.name}: its text is not in factorial/{fault.file} exactly once: fix the table")
    with tempfile.TemporaryDirectory(prefix="factorial-mutants-") as scratch:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(AT_ONCE):
            copies.put(copy_of_the_package(Path(scratch) / str(number)))
        folder = copies.get()
        before = run_tests(folder, sorted({test for fault in chosen for test in fault.tests}))
        copies.put(folder)
        if not before.passed:
            print(before.said)
            print("the tests have to pass without a fault first")
            return 1
        survivors = timed_out = 0
        with ThreadPoolExecutor(AT_ONCE) as pool:
            tried = pool.map(lambda fault: try_fault(fault, copies), chosen)
            for fault, (verdict, seconds) in zip(chosen, tried, strict=True):
                survivors += verdict.passed
                timed_out += verdict.timed_out
                result = "SURVIVED" if verdict.passed else f"killed by {verdict.failure}"
                print(f"{fault.name:55} {seconds:5.1f} s  {result}", flush=True)
    print(f"\n{len(chosen) - survivors} of {len(chosen)} killed, {timed_out} of these by time-out")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
