"""Broken files: each error is one line that names the file, the key or module, and the reason.

Most call the command's `main` in this process, with `--check`; some start the real command. Nothing is fake.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from factorial.cli.supervisor import main

ROOT = Path(__file__).parent.parent.parent

MODULES = {
    "shop": """
from factorial import Agent
from factorial.testing import ScriptedModel, say

SCRIPT = ScriptedModel([say("hello")])
till = Agent(name="till", instructions="i", model=SCRIPT)
store = Agent(name="store", instructions="i", model=SCRIPT)
another_till = Agent(name="till", instructions="i", model=SCRIPT)
root = Agent(name="system", instructions="i", model=SCRIPT)
keyless = Agent(name="keyless", instructions="i")
number = 7
""",
    "raises": "import json\njson.loads('{')",
    "mistyped": "def agent(:\n    pass",
    "leaves": "import sys\nsys.exit(3)",
    "egg": "import hen\nagent = hen.agent",
    "hen": "import egg\nagent = egg.agent",
    "needy": "import no_such_package",
    "misnamed": "from factorial import Agent\nagent = Agent(name='a b/c', instructions='i')",
    "binary": "agent = '\\\0'\n\0",
}

RUNNER = '[[runner]]\nagent = "shop:till"\n'
STORE = '[[runner]]\nagent = "shop:store"\n'


@dataclass(frozen=True)
class Broken:
    """The content of the file, and what its message contains apart from the file's name."""

    content: str | bytes
    says: tuple[str, ...]


def broken(content: str | bytes, *says: str) -> Broken:
    return Broken(content, says)


BROKEN = {
    # The file itself.
    "empty": broken("", "there is no [[runner]]", 'agent = "module:attribute"'),
    "only comments": broken("# nothing\n", "there is no [[runner]]"),
    "no runner": broken("[redis]\ntimeout = 1.0", "there is no [[runner]]"),
    "open bracket": broken("[redis\n", "not valid TOML", "line 1"),
    "open quote": broken('[redis]\nurl = "redis://h\n', "not valid TOML", "line 2"),
    "no value": broken(RUNNER + "processes =\n", "not valid TOML", "line 3"),
    "key twice": broken(RUNNER + "processes = 1\nprocesses = 2\n", "not valid TOML", "overwrite"),
    "table twice": broken("[redis]\n[redis]\n" + RUNNER, "not valid TOML", "redis"),
    "YAML": broken("redis:\n  url: redis://h\n", "not valid TOML"),
    "JSON": broken('{"runner": []}', "not valid TOML"),
    "Python's True": broken(RUNNER + "significant = True\n", "not valid TOML", "line 3"),
    "Latin-1": broken(b'[redis]\nnamespace = "caf\xe9"\n', "save it as UTF-8"),
    "UTF-16": broken((RUNNER).encode("utf-16"), "save it as UTF-8"),
    "zero bytes": broken(b"\0" * 64, "not valid TOML"),
    "brackets without end": broken("a = " + "[" * 100_000, "not valid TOML", "nested too deeply"),
    "number without end": broken("a = " + "9" * 10_000, "not valid TOML", "digits"),
    # Names.
    "unknown table": broken("[supervisr]\n" + RUNNER, "unknown key 'supervisr'", "did you mean 'supervisor'?"),
    "unknown table like none": broken("[zzz]\n" + RUNNER, "unknown key 'zzz'", "known here: redis, events"),
    "unknown key of redis": broken("[redis]\nulr = 'x'\n" + RUNNER, "'redis.ulr'", "did you mean 'url'?"),
    "unknown key of events": broken("[events]\nttll = 1.0\n" + RUNNER, "'events.ttll'", "did you mean 'ttl'?"),
    "unknown key of supervisor": broken(
        "[supervisor]\ngrase = 1.0\n" + RUNNER, "'supervisor.grase'", "did you mean 'grace'?"
    ),
    "unknown key of group": broken(
        "[[group]]\nname = 'g'\nstratgy = 'one_for_all'\n" + RUNNER, "[[group]] 1", "did you mean 'strategy'?"
    ),
    "unknown key of runner": broken(RUNNER + "proceses = 2", "[[runner]] 1", "'proceses'", "did you mean 'processes'?"),
    "unknown key of the second runner": broken(RUNNER + STORE + "grop = 'g'", "[[runner]] 2", "did you mean 'group'?"),
    "unknown key of worker": broken(RUNNER + "[runner.worker]\nbatch = 2", "[[runner]] 1", "'worker.batch'"),
    "unknown key of maintenance": broken(
        RUNNER + "[runner.maintenance]\nintervall = 2.0", "'maintenance.intervall'", "did you mean 'interval'?"
    ),
    "unknown key of the lowest level": broken(
        RUNNER + "[runner.maintenance.task_ttl]\nfailed = 2.0",
        "'maintenance.task_ttl.failed'",
        "did you mean 'failed_ttl'?",
    ),
    "unknown key of health": broken(
        RUNNER + "[runner.health]\nhard_memory = 2", "'health.hard_memory'", "did you mean 'hard_memory_mb'?"
    ),
    "unknown key of a runner's supervisor": broken(
        RUNNER + "[runner.supervisor]\ngrace = 2.0", "'supervisor.grace'", "known here: strategy, intensity, period"
    ),
    "a worker's key in the runner": broken(
        RUNNER + "batch_size = 2", "unknown key 'batch_size'", "it belongs in [runner.worker]"
    ),
    "a supervisor's key at the top": broken(
        "intensity = 3\n" + RUNNER, "unknown key 'intensity'", "it belongs in [supervisor]"
    ),
    "a key with a dash": broken(
        "[redis]\nretry-for = 1.0\n" + RUNNER, "'redis.retry-for'", "did you mean 'retry_for'?"
    ),
    "agent is missing": broken("[[runner]]\nprocesses = 2", "[[runner]] 1", "'agent' is missing"),
    "name is missing": broken("[[group]]\n" + RUNNER, "[[group]] 1", "'name' is missing"),
    # Kinds.
    "[runner]": broken('[runner]\nagent = "shop:till"', "write [[runner]], with double brackets"),
    "[group]": broken("[group]\nname = 'g'\n" + RUNNER, "write [[group]], with double brackets"),
    "[[redis]]": broken("[[redis]]\n" + RUNNER, "write it as a table, [redis]"),
    "[[runner.worker]]": broken(RUNNER + "[[runner.worker]]", "[[runner]] 1", "write it as a table, [runner.worker]"),
    "string for a table": broken('redis = "redis://h"\n' + RUNNER, "write it as a table, [redis]"),
    "string for runners": broken('runner = "shop:till"', "write [[runner]], with double brackets"),
    "strings for runners": broken('runner = ["shop:till"]', "[[runner]] 1", "write it as a table, [[runner]]"),
    "string for a number": broken(RUNNER + 'processes = "2"', "[[runner]] 1: 'processes'", "valid integer"),
    "boolean for a number": broken(RUNNER + "processes = true", "[[runner]] 1: 'processes'", "valid integer"),
    "fraction for a whole number": broken(RUNNER + "processes = 1.5", "'processes'", "valid integer"),
    "boolean for seconds": broken("[redis]\nretry_for = true\n" + RUNNER, "'redis.retry_for'", "valid number"),
    "date for seconds": broken("[supervisor]\ngrace = 2026-01-01\n" + RUNNER, "'supervisor.grace'", "valid number"),
    "unit in seconds": broken('[supervisor]\ngrace = "30s"\n' + RUNNER, "'supervisor.grace'", "valid number"),
    "number for a boolean": broken(RUNNER + "significant = 2", "[[runner]] 1: 'significant'", "valid boolean"),
    "string for a boolean": broken(RUNNER + "significant = 'yes'", "[[runner]] 1: 'significant'", "valid boolean"),
    "number for an agent": broken("[[runner]]\nagent = 7", "[[runner]] 1: 'agent'", "valid string"),
    "list for a group": broken(RUNNER + "group = ['g']", "[[runner]] 1: 'group'", "valid string"),
    # Ranges.
    "zero processes": broken(RUNNER + "processes = 0", "[[runner]] 1: 'processes'", "greater than or equal to 1"),
    "negative intensity": broken("[supervisor]\nintensity = -1\n" + RUNNER, "'supervisor.intensity'", "equal to 0"),
    "negative pause": broken("[supervisor]\nbackoff = -0.1\n" + RUNNER, "'supervisor.backoff'", "equal to 0"),
    "no grace": broken("[supervisor]\ngrace = 0\n" + RUNNER, "'supervisor.grace'", "greater than 0"),
    "infinite grace": broken("[supervisor]\ngrace = inf\n" + RUNNER, "'supervisor.grace'", "finite number"),
    "period that is not a number": broken(
        "[supervisor]\nperiod = nan\n" + RUNNER, "'supervisor.period'", "finite number"
    ),
    "heartbeat that is not a number": broken(
        RUNNER + "[runner.worker]\nheartbeat_interval = nan", "'worker.heartbeat_interval'", "finite number"
    ),
    "huge number": broken(RUNNER + f"[runner.worker]\nworkers = {10**400}", "'worker.workers'"),
    "huge intensity": broken(f"[supervisor]\nintensity = {2**70}\n" + RUNNER, "'supervisor.intensity'"),
    "one missed heartbeat": broken(RUNNER + "[runner.worker]\nmissed_heartbeats = 1", "'worker.missed_heartbeats'"),
    "blocked at once": broken(
        RUNNER + "[runner.health]\nblocked_after = 0.05", "'health.blocked_after'", "equal to 0.1"
    ),
    "no memory": broken(RUNNER + "[runner.health]\nhard_memory_mb = 0", "'health.hard_memory_mb'", "equal to 1"),
    "several mistakes at once": broken(
        "[redis]\nulr = 'x'\n" + RUNNER + "processes = 0", "'redis.ulr'", "[[runner]] 1: 'processes'"
    ),
    # Words.
    "unknown strategy": broken(
        "[supervisor]\nstrategy = 'one_for_two'\n" + RUNNER, "'supervisor.strategy'", "'one_for_all'"
    ),
    "unknown strategy of a runner": broken(
        RUNNER + "[runner.supervisor]\nstrategy = 'simple_one_for_one'", "'supervisor.strategy'", "'rest_for_one'"
    ),
    "unknown restart": broken(RUNNER + "restart = 'always'", "[[runner]] 1: 'restart'", "'permanent', 'transient'"),
    "unknown auto_shutdown": broken("[supervisor]\nauto_shutdown = 'always'\n" + RUNNER, "'supervisor.auto_shutdown'"),
    "scheme of the web": broken('[redis]\nurl = "http://h"\n' + RUNNER, "redis.url", "redis://", "begins with 'http'"),
    "address without scheme": broken(
        '[redis]\nurl = "localhost:6379"\n' + RUNNER, "redis.url", "begins with 'localhost'"
    ),
    "port that is a word": broken('[redis]\nurl = "redis://h:port"\n' + RUNNER, "redis.url", "HOST:PORT/DATABASE"),
    "database that is a word": broken('[redis]\nurl = "redis://h/main"\n' + RUNNER, "redis.url", "HOST:PORT/DATABASE"),
    "embedded nowhere": broken('[redis]\nurl = "embedded:"\n' + RUNNER, "redis.url", "embedded:DIR"),
    "namespace with a space": broken(
        '[redis]\nnamespace = "a b"\n' + RUNNER, "redis.namespace='a b'", "1 to 64 letters"
    ),
    "namespace with braces": broken('[redis]\nnamespace = "{a}"\n' + RUNNER, "redis.namespace='{a}'"),
    "group's name with a dot": broken(
        "[[group]]\nname = 'a.1'\n" + RUNNER, "[[group]] 1: name='a.1'", "1 to 64 letters"
    ),
    # What does not go together.
    "processes twice": broken(
        RUNNER + "processes = 2\n[runner.worker]\nprocesses = 3",
        "[[runner]] 1: processes=2 and worker.processes=3",
        "contradict each other",
    ),
    "soft above hard": broken(
        RUNNER + "[runner.health]\nsoft_memory_mb = 900\nhard_memory_mb = 800",
        "[[runner]] 1: health.soft_memory_mb=900",
        "less than hard_memory_mb=800",
    ),
    "unknown group": broken(
        "[[group]]\nname = 'shops'\n" + RUNNER + "group = 'shops'\n" + STORE + "group = 'shop'",
        "[[runner]] 2: group='shop'",
        "there is no such [[group]]",
        "did you mean 'shops'?",
    ),
    "unknown group and no other": broken(RUNNER + "group = 'shop'", "[[runner]] 1: group='shop'", "known here: none"),
    "group twice": broken(
        "[[group]]\nname = 'g'\n[[group]]\nname = 'g'\n" + RUNNER + "group = 'g'",
        "[[group]] 2: name='g'",
        "another group has this name",
    ),
    "group without runners": broken(
        "[[group]]\nname = 'g'\n" + RUNNER, "[[group]] 1: name='g'", "no runner belongs to it"
    ),
    "significant and permanent": broken(
        "[supervisor]\nauto_shutdown = 'any_significant'\n" + RUNNER + "significant = true",
        "[[runner]] 1: significant=true",
        "permanent",
    ),
    "significant group that is permanent": broken(
        "[[group]]\nname = 'g'\nsignificant = true\n" + RUNNER + "group = 'g'",
        "[[group]] 1: significant=true",
        "permanent",
    ),
    "significant without auto_shutdown": broken(
        RUNNER + "restart = 'transient'\nsignificant = true", "[[runner]] 1: significant=true", "auto_shutdown"
    ),
    "significant within a group": broken(
        "[[group]]\nname = 'g'\n" + RUNNER + "group = 'g'\nrestart = 'transient'\nsignificant = true",
        "[[runner]] 1: significant=true",
        "a group has no auto_shutdown",
    ),
    # Agents.
    "agent without attribute": broken('[[runner]]\nagent = "shop"', "[[runner]] 1: agent='shop'", "'module:attribute'"),
    "agent without module": broken('[[runner]]\nagent = ":till"', "[[runner]] 1: agent=':till'", "'module:attribute'"),
    "unknown module": broken(
        '[[runner]]\nagent = "shopp:till"', "'shopp:till'", "there is no module 'shopp'", "PYTHONPATH"
    ),
    "unknown module in a package": broken('[[runner]]\nagent = "json.shop:till"', "there is no module 'json.shop'"),
    "a path for a module": broken(
        '[[runner]]\nagent = "./shop.py:till"', "agent='./shop.py:till'", "'module:attribute'"
    ),
    "unknown attribute": broken(
        '[[runner]]\nagent = "shop:tell"', "'shop:tell'", "has no 'tell'; did you mean 'till'?"
    ),
    "not an agent": broken('[[runner]]\nagent = "shop:number"', "'shop:number'", "of type int, and not an agent"),
    "a class": broken('[[runner]]\nagent = "shop:Agent"', "'shop:Agent'", "it is a class"),
    "module that raises": broken(
        '[[runner]]\nagent = "raises:agent"', "'raises:agent'", "JSONDecodeError", "raises.py:2"
    ),
    "module that is mistyped": broken('[[runner]]\nagent = "mistyped:agent"', "'mistyped:agent'", "mistyped.py:1: "),
    "module that is no text": broken('[[runner]]\nagent = "binary:agent"', "'binary:agent'", "null bytes"),
    "module that leaves": broken('[[runner]]\nagent = "leaves:agent"', "'leaves:agent'", "SystemExit", "leaves.py:2"),
    "modules in a circle": broken('[[runner]]\nagent = "egg:agent"', "'egg:agent'", "has no attribute 'agent'"),
    "module that lacks a package": broken('[[runner]]\nagent = "needy:agent"', "'needy:agent'", "no_such_package"),
    "agent that cannot be made": broken('[[runner]]\nagent = "misnamed:agent"', "'misnamed:agent'", "name='a b/c'"),
    "agent without a key for its model": broken('[[runner]]\nagent = "shop:keyless"', "'keyless'", "OPENAI_API_KEY"),
    "two agents of one name": broken(
        RUNNER + '[[runner]]\nagent = "shop:another_till"', "two runners", "'till'", "shop:another_till"
    ),
    "one agent twice": broken(RUNNER + RUNNER, "two runners", "'till'"),
    "a group named like an agent": broken(
        "[[group]]\nname = 'till'\n" + RUNNER + "group = 'till'", "'till'", "give one of them another name"
    ),
    "an agent named like the root": broken('[[runner]]\nagent = "shop:root"', "'system'", "another name"),
}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's directory with modules, some of which are broken."""
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for variable in ("OPENAI_API_KEY", "REDIS_URL"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def write(case: Broken) -> None:
    content = case.content.encode() if isinstance(case.content, str) else case.content
    Path("broken.toml").write_bytes(content)


def check_complaint(code: int, stdout: str, stderr: str, file: str, says: tuple[str, ...]) -> None:
    assert code == 2
    assert stdout == ""
    [line] = stderr.splitlines()
    assert line.startswith(f"factorial: {file}: ")
    assert "Traceback" not in line
    assert len(line) < 600
    for part in says:
        assert part in line
    assert line.count(file) == 1


@pytest.mark.parametrize("kind", BROKEN)
def test_one_line_names_file_key_and_reason(kind: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(BROKEN[kind])
    code = main(["broken.toml", "--check"])
    printed = capsys.readouterr()
    check_complaint(code, printed.out, printed.err, "broken.toml", BROKEN[kind].says)


@pytest.mark.parametrize("kind", ["missing", "a directory", "a file for a directory", "a link to itself", "too long"])
def test_a_path_that_is_not_a_readable_file(kind: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "file").touch()
    (directory / "link.toml").symlink_to("link.toml")
    names = ["none.toml", ".", "file/system.toml", "link.toml", "x" * 300]
    reasons = ["there is no such file", "Is a directory", "Not a directory", "symbolic links", "name too long"]
    place = ["missing", "a directory", "a file for a directory", "a link to itself", "too long"].index(kind)
    code = main([names[place], "--check"])
    printed = capsys.readouterr()
    check_complaint(code, printed.out, printed.err, names[place], (reasons[place],))


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    "kind",
    ["empty", "UTF-16", "unknown key of worker", "soft above hard", "module that raises", "two agents of one name"],
)
def test_the_real_command_prints_the_same_line(kind: str, check: bool, directory: Path) -> None:
    write(BROKEN[kind])
    done = subprocess.run(
        [sys.executable, "-m", "factorial.supervisor", "broken.toml", *(["--check"] if check else [])],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    check_complaint(done.returncode, done.stdout, done.stderr, "broken.toml", BROKEN[kind].says)
    assert [each for each in psutil.process_iter() if _place(each) == str(directory)] == [psutil.Process()]


def _place(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"REDIS_URL": "http://h"}, ("REDIS_URL: begin it with redis://", "'http'")),
        ({"REDIS_HOST": "h", "REDIS_PORT": "many"}, ("REDIS_HOST and REDIS_PORT: write it as redis://",)),
    ],
)
def test_an_error_in_the_environment_is_one_line_too(
    variables: dict[str, str], says: tuple[str, ...], directory: Path
) -> None:
    write(broken(RUNNER))
    done = subprocess.run(
        [sys.executable, "-m", "factorial.supervisor", "broken.toml"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("factorial: ")]
    assert all(part in line for part in says)
    assert "Traceback" not in done.stderr


def test_a_password_is_not_shown(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(broken('[redis]\nurl = "redis://:se/cret@h:x"\n' + RUNNER))
    assert main(["broken.toml", "--check"]) == 2
    assert "cret" not in capsys.readouterr().err


def test_a_good_file_passes(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(broken("\ufeff" + RUNNER + STORE))
    assert main(["broken.toml", "--check"]) == 0, capsys.readouterr().err


def test_there_are_many_cases() -> None:
    assert len(BROKEN) >= 100
    assert len({case.content for case in BROKEN.values()}) == len(BROKEN)
