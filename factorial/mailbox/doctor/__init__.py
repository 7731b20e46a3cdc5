"""The doctor: checks a namespace against its invariants while the system works, with commands that only read.

check.py        `check_namespace`: one check from start to end, and its report
first_pass.py   reads every key and every run once; what looks wrong becomes a candidate
rereading.py    reads the candidates again: what stays wrong is a finding
sums.py         counts over many runs: of owners, batches and held runs
wake.py         ready runs without a wake token
notes.py        what violates nothing, but an operator should know

invariants.py   the invariants, and what a finding is
rules.py        the rules about one run
aggregates.py   the rules about owners, batches, agents and processes

reader.py       many questions to the server at once
runs.py         reads runs, and the places where they are
shared.py       reads queues, processes, counts and events
stored.py       runs, processes and batches as they were read
tally.py        sums over the runs that were read
"""

from factorial.mailbox.doctor.check import DoctorReport, check_namespace
from factorial.mailbox.doctor.invariants import Finding, Invariant

__all__ = ["DoctorReport", "Finding", "Invariant", "check_namespace"]
