"""A programmer who asks before tests are run, written for nfactorial 0.1.31: `python agent.py` runs the workers."""
# ruff: noqa: RUF012  # pydantic gives each context a copy of a default

import os
from typing import Any

from factorial import (
    AgentContext,
    AgentWorkerConfig,
    BaseAgent,
    ExecutionContext,
    ModelSettings,
    Orchestrator,
    claude_4_sonnet,
    deferred_tool,
    fallback_models,
    gpt_41,
)


class Workspace(AgentContext):
    files: dict[str, str]
    changed: list[str] = []


def read_file(path: str, agent_ctx: Workspace) -> str:
    """Read a file of the workspace."""
    return agent_ctx.files[path]


def write_file(path: str, content: str, agent_ctx: Workspace) -> tuple[str, dict[str, Any]]:
    """
    Write a file of the workspace.

    Arguments:
    path: Where the file is
    content: All of its text
    """
    before = agent_ctx.files.get(path)
    agent_ctx.files[path] = content
    agent_ctx.changed.append(path)
    return f"{path} is written", {"path": path, "before": before, "after": content}


@deferred_tool(timeout=600.0)
def run_tests(command: str, agent_ctx: Workspace, execution_ctx: ExecutionContext) -> None:
    """Run the tests, if the user approves it."""
    with open("approvals", "a") as approvals:
        approvals.write(f"{execution_ctx.task_id} {execution_ctx.current_tool_call_id} {command}\n")


class Programmer(BaseAgent[Workspace]):
    def __init__(self):
        super().__init__(
            context_class=Workspace,
            instructions="You change files, and run the tests when you are done.",
            tools=[read_file, write_file, run_tests],
            model=fallback_models(gpt_41, claude_4_sonnet),
            model_settings=ModelSettings(temperature=0.1),
        )

    def prepare_messages(self, agent_ctx: Workspace) -> list[dict[str, Any]]:
        if agent_ctx.turn > 0:
            return agent_ctx.messages
        listing = "\n".join(sorted(agent_ctx.files))
        return [
            {"role": "system", "content": self.instructions},
            *agent_ctx.messages,
            {"role": "user", "content": f"Files:\n{listing}\n\n{agent_ctx.query}"},
        ]


programmer = Programmer()

orchestrator = Orchestrator(
    redis_host=os.getenv("REDIS_HOST", "localhost"),
    redis_port=int(os.getenv("REDIS_PORT", "6379")),
    openai_api_key=os.getenv("OPENAI_API_KEY"),
)
orchestrator.register_runner(agent=programmer, agent_worker_config=AgentWorkerConfig(workers=2, max_retries=3))

if __name__ == "__main__":
    orchestrator.run()
