"""The documents' snippets and examples, each by its place (see `documents.py`), and what is done to a snippet before
it runs: the slips that are corrected, and the level of the few lines whose indentation does not follow from the syntax.

A table holds one document, in its order. `test_spec_documents.py` runs them, and asserts that none is missing here.
"""

from tests.spec.documents import Example, Snippet

__all__ = ["AGENTS", "CONTEXT", "EVENTS", "INTRODUCTION", "ORCHESTRATOR", "TABLES"]

WEBSOCKET = '@app.websocket("/ws/{user_id}")'
DISCONNECTED = 'print(f"WebSocket disconnected for user_id={user_id}")'

INTRODUCTION: dict[str, Example] = {
    "quick example": Snippet("introduction.md", 1),
    "installation": Example("introduction.md", 2),  # a shell's
}

ORCHESTRATOR: dict[str, Example] = {
    "basic setup": Snippet("orchestrator.md", 1),
    "redis configuration": Snippet("orchestrator.md", 2),
    "worker configuration": Snippet("orchestrator.md", 3),
    "maintenance worker configuration": Snippet("orchestrator.md", 4),
    "enqueue tasks": Snippet(
        "orchestrator.md",
        5,
        slips=[
            ("Agent(...)", 'Agent(instructions="You analyze data.")'),
            ("Orchestrator(...)", "Orchestrator()"),
            ("register_runner(...)", "register_runner(agent=agent)"),
        ],
    ),
    "check task status": Snippet("orchestrator.md", 6),
    "get task data": Snippet("orchestrator.md", 7),
    "get task result": Snippet("orchestrator.md", 8, slips=[("get_results(", "get_task_result(")]),
    "cancel tasks": Snippet("orchestrator.md", 9),
    "steer tasks": Snippet("orchestrator.md", 10),
    "dashboard": Snippet(
        "orchestrator.md", 11, slips=[("import ObservabilityConfig", "import ObservabilityConfig, Orchestrator")]
    ),
    "metrics": Snippet("orchestrator.md", 12),
    "run inline": Snippet("orchestrator.md", 13, slips=[("tools=[...],", "tools=[],")]),
    "progress streaming": Snippet(
        "orchestrator.md",
        14,
        slips=[
            (" = extract_tool_data(", " = _extract_tool_data("),
            ("_format_tool_message(tool_name, tool_args)", "_format_tool_message(tool_name, tool_args, None)"),
            ("event_handler=handle_event", "event_handler=event_printer"),
        ],
    ),
}

CONTEXT: dict[str, Example] = {
    "agent context": Snippet("context.txt", first="from factorial import AgentContext", last=")"),
    "custom context": Snippet(
        "context.txt", first="from typing import Any", last="agent_b_messages: list[dict[str, Any]] = []"
    ),
    "using a custom context": Snippet(
        "context.txt",
        first="from factorial import BaseAgent",
        last='task = agent.create_task(owner_id="user123", payload=context)',
        slips=[("task = agent.", "agent = ABTestableAgent()\ntask = agent.")],
        levels={"# Create tasks with custom context": 0},
    ),
    "execution context": Snippet(
        "context.txt",
        first="from factorial import AgentContext, ExecutionContext",
        last='print(f"Iterations: {execution_ctx.iterations}")',
        slips=[
            ("import AgentContext", "import Agent, AgentContext"),
            ("def run_turn(self, agent_ctx: AgentContext)", "async def run_turn(self, agent_ctx: AgentContext):"),
            ('execution_ctx.iterations}")', 'execution_ctx.iterations}")\nreturn await super().run_turn(agent_ctx)'),
        ],
    ),
    "context in tools": Snippet(
        "context.txt",
        first="def stateless_tool(input_args: str) -> str:",
        last="return run_tool_a(input_args)",
        nth=2,
        slips=[("execution_context.retries", "execution_ctx.retries")],
    ),
}

AGENTS: dict[str, Example] = {
    "quick start": Snippet("agents.md", 1),
    "tools": Snippet("agents.md", 2),
    "models": Snippet("agents.md", 3, slips=[("import gpt_5,", "import Agent, AgentContext, Model, gpt_5,")]),
    "model settings": Snippet("agents.md", 4),
    "dynamic model settings": Snippet("agents.md", 5),
    "structured output": Snippet("agents.md", 6),
    "creating tasks": Snippet("agents.md", 7),
    "custom agent": Snippet("agents.md", 8),
    "custom context classes": Snippet(
        "agents.md",
        9,
        slips=[
            ("orchestrator = ...", "orchestrator = Orchestrator()"),
            ("agent=research_agent", "agent=ResearchAgent()"),
        ],
    ),
    "errors and retries": Snippet("agents.md", 10),
}

EVENTS: dict[str, Example] = {
    "enqueue": Snippet("events.txt", first='@app.post("/api/enqueue")', last='return {"task_id": task.id}'),
    "subscribe": Snippet("events.txt", first=WEBSOCKET, last=DISCONNECTED),
    "final": Snippet("events.txt", first="# Only get completion and failure events", last=DISCONNECTED),
    "tasks": Snippet("events.txt", first="# Only get updates for specific tasks", last=DISCONNECTED),
    "progress": Snippet("events.txt", first="# Get all progress events using regex pattern", last=DISCONNECTED),
    "manual": Snippet("events.txt", first=WEBSOCKET, last=")", nth=3, levels={"await websocket.send_text(data)": 4}),
    "base fields": Example("events.txt", first="{", last="}"),
    "agent_output": Example("events.txt", first="{", last="}"),
    "progress_update_completion_started": Example("events.txt", first="{", last="}", nth=2),
    "run_started": Example("events.txt", first="{", last="}"),
    "run_completed": Example("events.txt", first="{", last="}"),
    "run_failed": Example("events.txt", first="{", last="}"),
    "run_cancelled": Example("events.txt", first="{", last="}"),
    "task_failed": Example("events.txt", first="{", last="}"),
    "task_retried": Example("events.txt", first="{", last="}"),
    "task_pending_tool_call_results": Example("events.txt", first="{", last="}"),
    "run_steering_applied": Example("events.txt", first="{", last="}"),
    "run_steering_failed": Example("events.txt", first="{", last="}"),
    "custom events": Snippet(
        "events.txt",
        first="from factorial import Agent, AgentContext, AgentEvent",
        last="...",
        slips=[("\n...\n", "\nreturn await super().run_turn(agent_ctx)\n")],
    ),
    "progress decorator": Snippet(
        "events.txt",
        first="from factorial import Agent, AgentContext, AgentEvent",
        last='print("doing some work"...)',
        slips=[
            ("AgentContext, AgentEvent", "AgentContext, AgentEvent, publish_progress"),
            ("\n...\n", "\nawait self.do_some_work()\nreturn await super().run_turn(agent_ctx)\n"),
            ("do_some_work():", "do_some_work(self):"),
            ('("doing some work"...)', '("doing some work")'),
        ],
    ),
    "custom event types": Snippet(
        "events.txt", first="from dataclasses import dataclass", last=")", nth=2, levels={"# Usage in agent": 0}
    ),
}

TABLES: dict[str, dict[str, Example]] = {
    "introduction.md": INTRODUCTION, "orchestrator.md": ORCHESTRATOR, "context.txt": CONTEXT, "agents.md": AGENTS,
    "events.txt": EVENTS,
}  # fmt: skip
