"""A supervisor in a process of its own: `python host.py diary '{flags}' '[[target, {spec}], ...]'`.

A script as a user may write one, without a `__main__` guard: a child that imported it again would start a tree too.
"""

import asyncio
import json
import sys
from dataclasses import asdict

from factorial.errors import SupervisionError
from factorial.supervisor.process.child_process import ChildProcess
from factorial.supervisor.process.lifeline import inside_child
from factorial.supervisor.process.signals import stop_requests
from factorial.supervisor.rules.spec import ChildExit, ChildSpec, SupervisorFlags, SupervisorSpec
from factorial.supervisor.tree.tree import Tree
from factorial.telemetry.logs import log_to_stderr

assert not inside_child(), "the main module was imported again"
diary, flags, children = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])


async def on_exit(exit: ChildExit) -> None:
    with open(diary, "a") as file:  # noqa: ASYNC230  # one short line
        file.write(json.dumps({"event": "exited", **asdict(exit)}) + "\n")


async def main() -> None:
    specs = [
        ChildSpec(
            id=f"child.{number}",
            target=f"tests.supervisor.targets:{target}",
            kwargs={"diary": diary, **changes.pop("kwargs", {})},
            **changes,
        )
        for number, (target, changes) in enumerate(children, start=1)
    ]
    with stop_requests() as requests:
        root = SupervisorSpec(id="root", flags=SupervisorFlags(**flags), children=tuple(specs))
        tree = Tree(root, launch=ChildProcess, on_exit=on_exit)
        await tree.run(requests.graceful, requests.now)


log_to_stderr("supervisor")
try:
    asyncio.run(main())
except SupervisionError as error:
    sys.exit(f"factorial: {error}")
