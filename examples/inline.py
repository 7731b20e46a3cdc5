"""An agent in your own process, without Redis and workers. It has the same lifecycle and the same events.

python -m examples.inline
"""

import ast
import asyncio
import operator

from examples.model import WHO_ANSWERS, model_or
from factorial import Agent, AgentContext, BaseEvent
from factorial.testing import ScriptedModel, call, calls, say

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculate(expression: str) -> float:
    """Calculate an arithmetic expression.

    Args:
        expression: numbers, brackets, and + - * /.
    """

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(int() | float() as number):
                return number
            case ast.BinOp(left, operation, right) if type(operation) in OPERATIONS:
                return float(OPERATIONS[type(operation)](value(left), value(right)))
        raise ValueError(f"{ast.unparse(node)!r} is not arithmetic")

    return value(ast.parse(expression, mode="eval").body)


agent = Agent(
    name="calculator",
    instructions="Use the tool for every calculation.",
    tools=[calculate],
    model=model_or(
        ScriptedModel(
            [
                calls(call("calculate", expression="19.99 * 3"), call("calculate", expression="19.99 * 3 / 0")),
                say("Three of them cost 59.97, and nobody can share them among none."),
            ]
        )
    ),
    max_turns=5,
)


async def show(event: BaseEvent) -> None:
    """Print the result of each tool call."""
    if event.event_type in ("progress_update_tool_action_completed", "progress_update_tool_action_failed"):
        data = getattr(event, "data", {})
        result = getattr(event, "error", None) or data["result"]["output_data"]
        print(f"{data['args'][0]['function']['arguments']} -> {result}")


async def main() -> None:
    print(WHO_ANSWERS)
    completion = await agent.run_inline(
        AgentContext(query="What do three at 19.99 cost, and what does each of nobody pay?"), event_handler=show
    )
    print(completion.output)


if __name__ == "__main__":
    asyncio.run(main())
