"""The messages that a turn sends, and a way to make them that 0.1.x had.

There, `prepare_messages` made the whole conversation in the first turn, the instructions and the query included, and in
every later turn it gave back `agent_ctx.messages` as they were. An agent that overrides it so is served so: what it
makes in the first turn is kept as its conversation. Whether it does is found out by asking it. Called by `turn.py`.
"""

from typing import TYPE_CHECKING, Any

from factorial.context import AgentContext

if TYPE_CHECKING:
    from factorial.agent.agent import BaseAgent

__all__ = ["messages_to_send"]


def messages_to_send(agent: "BaseAgent[Any]", agent_ctx: AgentContext) -> list[dict[str, Any]]:
    """What `prepare_messages` makes of the context, for its next model call."""
    from factorial.agent.agent import BaseAgent

    is_overridden = type(agent).prepare_messages is not BaseAgent.prepare_messages
    if agent_ctx.turn == 0 and is_overridden and _gives_messages_back(agent, agent_ctx):
        agent_ctx.messages = _without_query(agent_ctx)
        agent_ctx.messages = agent.prepare_messages(agent_ctx)
        return agent_ctx.messages
    return agent.prepare_messages(agent_ctx)


def _gives_messages_back(agent: "BaseAgent[Any]", agent_ctx: AgentContext) -> bool:
    """Whether the messages of a later turn are, for this agent, those of the context and nothing else."""
    later = [{"role": "user", "content": agent_ctx.query}]
    in_a_later_turn = agent_ctx.model_copy(update={"turn": 1, "messages": later}, deep=True)
    try:
        return agent.prepare_messages(in_a_later_turn) is later
    except Exception:  # the boundary to the user's code: it looks for more in a later turn, so it is not that simple
        return False


def _without_query(agent_ctx: AgentContext) -> list[dict[str, Any]]:
    """The messages but the last one that is the query: such an agent adds that itself."""
    query = {"role": "user", "content": agent_ctx.query}
    messages = agent_ctx.messages
    last = next((place for place in reversed(range(len(messages))) if messages[place] == query), len(messages))
    return [*messages[:last], *messages[last + 1 :]]
