"""Operating a running system: by orders through Redis, by SIGHUP, and by SIGUSR1.

Real: supervisor, worker processes, Valkey, signals, the command. Scripted: the model.
"""

import asyncio
import signal
from typing import Any

from tests.chaos.system import System, check_result, show
from tests.support import PATIENCE, wait_until

RUNNERS = """
[[group]]
name = "pipeline"
strategy = "rest_for_one"
[[runner]]
agent = "tests.chaos.agents:harm"
group = "pipeline"
[[runner]]
agent = "tests.chaos.agents:odd"
group = "pipeline"
restart = "transient"
supervisor = { strategy = "one_for_all", intensity = 3, period = 30 }
processes = 2
"""


async def test_every_verb_on_a_running_system(system: System) -> None:
    system.configure(more=RUNNERS)
    await system.start()
    task = await system.enqueue(turns=500, model_seconds=0.3, tool_seconds=0.3)
    await system.sees(task, edge="begin")
    code, drawn = await system.command("status")
    assert code == 0
    show("status of a tree with three runners", it="\n" + drawn)
    for name in ("pipeline", "work", "harm", "odd", "work.1", "work.2", "harm.1", "odd.1", "odd.2"):
        assert f" {name} " in drawn, name

    before = await system.nodes()
    assert {before[name]["strategy"] for name in ("work", "harm")} == {"one_for_one"}
    assert (before["odd"]["strategy"], before["pipeline"]["strategy"]) == ("one_for_all", "rest_for_one")
    assert (before["odd"]["intensity"], before["work"]["intensity"]) == (3, 100)
    await wait_until(lambda: has_figures(system), message="the figures of each process")

    assert await system.order("scale", "work", "3") == "scaled work from 2 to 3"
    assert (await system.nodes())["work.3"]["state"] == "running"
    assert (await system.order("restart", "work")).startswith("replaced work.1, work.2, work.3; in ")
    restarted = await system.nodes()
    assert restarted["work.1"]["pid"] != before["work.1"]["pid"]
    assert restarted["harm.1"]["pid"] == before["harm.1"]["pid"]
    assert restarted["work"]["restarts"] == 0
    assert await system.order("scale", "work", "1") == "scaled work from 3 to 1"
    assert (await system.nodes()).keys() & {"work.2", "work.3"} == set()

    assert await system.order("drain", "work") == "drained work.1"
    assert (await system.nodes())["work.1"]["state"] == "drained"
    assert await system.status(task) == "queued"
    assert await system.order("resume") == "resumed work.1"
    await wait_until(lambda: is_processing(system, task), message="the task going on")

    code, answer = await system.command("restart", "nobody")
    assert code == 2
    assert "there is no group, runner or process 'nobody' here; there are: work" in answer
    code, answer = await system.command("scale", "work", "0")
    assert code == 2
    data = await system.orchestrator.get_task_data(task.id)
    assert data is not None
    assert (data["status"], data["retries"]) == ("processing", 0)
    assert data["pickups"] >= 3  # it was handed over again and again
    code, answer = await system.command("stop")
    assert code == 0, answer
    assert await asyncio.wait_for(system.process.wait(), PATIENCE) == 0
    code, answer = await system.command("status")
    assert code == 1


async def test_a_reload_does_what_has_changed_and_refuses_what_cannot_be(system: System) -> None:
    system.configure(processes=2)
    await system.start()
    first = await system.nodes()
    good = system.config.read_text()
    for bad, named in (
        (good + "\nprocesess = 2", "unknown key 'procesess'"),
        (good.replace("agents:work", "agents:wrok"), "has no 'wrok'"),
        (good.replace(f'"{system.namespace}"', '"elsewhere"'), "a change in [redis] needs a restart"),
        ("[redis", "it is not valid TOML"),
    ):
        system.config.write_text(bad)
        refused = system.log.read_text().count("not reloaded")
        system.process.send_signal(signal.SIGHUP)
        await system.logs("not reloaded", refused + 1)
        assert named in system.log.read_text().rsplit("not reloaded", 1)[1]
    system.config.write_text(good)
    assert {name: node.get("pid") for name, node in (await system.nodes()).items()} == {
        name: node.get("pid") for name, node in first.items()
    }

    system.configure(processes=1, more=RUNNERS)
    system.process.send_signal(signal.SIGHUP)
    await system.logs("system: reloaded: ")
    then = await system.nodes()
    assert {name for name, node in then.items() if node["type"] == "worker"} == {"work.1", "harm.1", "odd.1", "odd.2"}
    assert then["work.1"]["pid"] != first["work.1"]["pid"]
    assert then["work"]["restarts"] == 0
    task = await system.enqueue(turns=1)
    check_result(await system.finished(task), turns=1)
    assert await system.stop() == 0


async def test_a_successor_that_cannot_start_leaves_the_old_process_at_work(system: System) -> None:
    """As when a release is broken: it is good enough for --check, and its processes do not get ready."""
    module = system.directory / "release.py"
    good = "from tests.chaos.agents import work as agent\nprint('a module may print')\n"
    module.write_text(good)
    system.configure()
    system.config.write_text(system.config.read_text().replace("tests.chaos.agents:work", "release:agent"))
    await system.start()
    first = await system.nodes()
    module.write_text(
        good + "from factorial.supervisor.process.lifeline import inside_child\nassert not inside_child()\n"
    )
    system.process.send_signal(signal.SIGHUP)
    await system.logs("not reloaded: child 'work.1' could not be started: agent 'release:agent'")
    assert (await system.nodes())["work.1"]["pid"] == first["work.1"]["pid"]
    task = await system.enqueue(turns=1)
    check_result(await system.finished(task), turns=1)
    assert await system.stop() == 0


async def test_sigusr1_writes_the_tree_and_all_stacks(system: System) -> None:
    system.configure()
    await system.start()
    task = await system.enqueue(turns=1, tool_seconds=5)
    await system.sees(task, what="slow", edge="begin")
    system.process.send_signal(signal.SIGUSR1)
    await system.logs("--- end of the stacks of work.", 2)
    await system.logs("most recent call first", 3)
    await system.logs("asyncio tasks of supervisor")
    text = system.log.read_text()
    assert "NODE" in text
    assert ", in slow\n" in text  # where the tool waits
    check_result(await system.finished(task), turns=1)
    assert await system.stop() == 0


async def has_figures(system: System) -> bool:
    workers = [node for node in (await system.nodes()).values() if node["type"] == "worker"]
    return all(
        node.get("rss", 0) > 20_000_000
        and node["open_files"] > 5
        and {"cpu", "descendants", "lag", "tasks"} <= node.keys()
        for node in workers
    )


async def is_processing(system: System, task: Any) -> bool:
    return await system.status(task) == "processing"
