"""Structured output, without a model. Nothing is fake."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import Field

from factorial.context import AgentContext
from factorial.errors import ConfigError
from factorial.tools import FINAL_OUTPUT, FunctionToolActionResult, call_tool, final_output_tool
from factorial.utils import BaseModel
from tests.unit.test_tools_calls import tool_call


class Joke(BaseModel):
    setup: str
    punchline: str


class Node(BaseModel):
    """A tree."""

    value: int
    children: list[Node] = Field(default_factory=list)


@dataclass
class Score:
    points: int


async def call_with(output_type: Any, raw: str, parse_args: bool = True) -> FunctionToolActionResult:
    call = tool_call(FINAL_OUTPUT, raw=raw)
    return await call_tool(final_output_tool(output_type), call, AgentContext(query="q"), None, parse_args=parse_args)


def test_the_tool_is_the_model() -> None:
    offered = final_output_tool(Joke).param["function"]
    assert offered["name"] == "final_output"
    assert offered["parameters"]["properties"] == {"setup": {"type": "string"}, "punchline": {"type": "string"}}
    assert offered["parameters"]["required"] == ["setup", "punchline"]


@pytest.mark.parametrize("parse_args", [True, False])
async def test_a_valid_output(parse_args: bool) -> None:
    """It is validated even if other tools get raw text."""
    result = await call_with(Joke, '{"setup": "Why?", "punchline": "So."}', parse_args)
    assert result.output_data == Joke(setup="Why?", punchline="So.") and result.error is None
    assert result.output_str == '{"setup":"Why?","punchline":"So."}'


async def test_an_invalid_output_goes_back() -> None:
    result = await call_with(Joke, '{"setup": "Why?"}')
    assert result.output_data is None
    assert result.output_str == "Error: the arguments of 'final_output' are not valid: 'punchline' is missing"


@pytest.mark.parametrize(
    ("output_type", "raw", "output"),
    [
        (Score, '{"points": 3}', Score(3)),
        (Node, '{"value": 1, "children": [{"value": 2}]}', Node(value=1, children=[Node(value=2)])),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (list[Joke], '{"output": [{"setup": "a", "punchline": "b"}]}', [Joke(setup="a", punchline="b")]),
        (str, '{"output": "text"}', "text"),
        (tuple[str, int], '{"output": ["text", 1]}', ("text", 1)),
        (Joke | Score, '{"output": {"points": 1}}', Score(1)),
    ],
)
async def test_other_types(output_type: Any, raw: str, output: Any) -> None:
    assert final_output_tool(output_type).param["function"]["parameters"]["type"] == "object"
    result = await call_with(output_type, raw)
    assert result.output_data == output, result.output_str


def test_a_type_that_cannot_be_read_from_json() -> None:
    class Plain: ...

    with pytest.raises(ConfigError, match="output_type=Plain cannot be read from JSON"):
        final_output_tool(Plain)
