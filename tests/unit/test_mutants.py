"""The table of hand-made faults (`make mutants`) still fits the code. Nothing is run, nothing is fake."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.mutants.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.checkout


@cache
def functions(file: str) -> set[str]:
    """The test functions of a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_applied_and_its_tests_exist(fault: Fault) -> None:
    assert (ROOT / "factorial" / fault.file).read_text(encoding="utf-8").count(fault.text) == 1
    assert fault.replacement != fault.text
    assert fault.tests
    for test in fault.tests:
        file, _, name = test.partition("::")
        assert name in functions(file), test


def test_names_of_faults_are_unique() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 22
