"""The table of verbs. Real: the package `factorial.cli` and its modules, an interpreter of its own for the imports."""

import subprocess
import sys
from pathlib import Path

import pytest

from factorial import cli
from factorial.cli.common import FACTORIAL, SUPERVISOR
from factorial.cli.main import main
from factorial.cli.verbs import find_verbs

GREET = """
from factorial.cli.common import FACTORIAL, Verb

VERBS = [
    Verb(program=FACTORIAL, name="greet", summary="greet", description="Greet.", exit_codes=["0 done"],
         examples=["greet --name Ann"], needs_server=False,
         add_options=lambda parser: parser.add_argument("--name"),
         run=lambda options: print("hello", options.name) or 0),
]
"""


def test_the_verbs() -> None:
    assert set(find_verbs(FACTORIAL)) == {"doctor"}
    assert list(find_verbs(SUPERVISOR)) == ["status", "drain", "resume", "restart", "scale", "stop"]


def test_a_new_verb_is_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "greet.py").write_text(GREET)
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "factorial.cli.greet", raising=False)
    assert main(["greet", "--name", "Ann"]) == 0
    assert capsys.readouterr().out == "hello Ann\n"
    with pytest.raises(SystemExit):
        main(["greet", "--help"])
    help = capsys.readouterr().out
    assert "examples:\n  factorial greet --name Ann" in help and "--redis" not in help
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "greet" in capsys.readouterr().out


@pytest.mark.parametrize("program", [FACTORIAL, SUPERVISOR])
def test_to_list_the_verbs_loads_no_client_of_a_server(program: str) -> None:
    code = f"""
import sys
from factorial.cli.verbs import find_verbs
assert find_verbs({program!r})
print([name for name in ("redis", "openai", "factorial.mailbox", "factorial.agent", "factorial.supervisor.tree")
       if name in sys.modules])
"""
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert listed.stdout == "[]\n"
