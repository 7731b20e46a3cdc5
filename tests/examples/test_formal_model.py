"""A small part of `make model`: Spin searches the model of the mailbox protocol, and finds the faults put into it.

Spin and gcc are real; without them it is skipped.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).resolve().parents[2] / "formal" / "check.py"


@pytest.mark.skipif(
    not (shutil.which("spin") and shutil.which("gcc")), reason="Spin or gcc is not installed: apt-get install spin gcc"
)
def test_the_protocol_has_no_error_in_any_state_and_each_fault_has_one() -> None:
    done = subprocess.run([sys.executable, str(CHECK), "--quick"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT" not in done.stdout and done.stdout.endswith("as expected\n")


def test_without_spin_it_says_what_to_install(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(CHECK)], capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert (done.returncode, len(done.stdout.splitlines())) == (2, 1)
    assert "apt-get install spin gcc" in done.stdout
