"""Whether a namespace keeps the protocol's promise: looked at while everything moves, with commands that only read.

`doctor.py` says what is looked at, when, and what counts as a finding; `invariants.py` has the rules.
"""

from factorial.mailbox.doctor.doctor import Checkup, check
from factorial.mailbox.doctor.invariants import Finding, Invariant

__all__ = ["Checkup", "Finding", "Invariant", "check"]
