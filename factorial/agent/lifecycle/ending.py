"""Answers that do not end a run as it should end: incomplete ones, and words where a typed output is due. Pure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from factorial._core.text import shorten
from factorial.agent.lifecycle.definition import AgentDefinition
from factorial.errors import IncompleteAnswerError, OutputError
from factorial.models.answer import finish_reason, is_incomplete
from factorial.tools import FINAL_OUTPUT

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

__all__ = ["CORRECTION", "answer_text", "check_complete", "check_outputs"]

CORRECTION: dict[str, str] = {
    "role": "user",
    "content": f"An answer in words is not accepted. Give the answer by calling the tool {FINAL_OUTPUT}.",
}
"""What the model reads after an answer in words, if the run has to end with a typed output."""

_SHOWN = 300
"""Characters of an answer that an error shows."""


def check_complete(agent: AgentDefinition[Any], response: "ChatCompletion") -> None:
    """Raise `IncompleteAnswerError` for an answer without tool calls that is incomplete, unless the agent takes such
    answers. An agent with an output type takes none as its output, so that words are corrected."""
    reason = finish_reason(response)
    if reason is None or not is_incomplete(reason) or agent.incomplete_answers == "mark":
        return
    text = answer_text(response) or ""
    happened = {
        "length": f"the answer was cut at the token limit, after {len(text)} characters: raise max_completion_tokens",
        "content_filter": "the provider's content filter has blocked the answer",
        "refusal": f"the model refuses to answer: {shorten(text, _SHOWN)}",
    }[reason]
    raise IncompleteAnswerError(
        f'{happened} (finish_reason {reason}). With incomplete_answers="mark", the agent takes such an answer as its '
        "output, and the events say why it ended",
        finish_reason=reason,
        text=text,
    )


def check_outputs(agent: AgentDefinition[Any], messages: Sequence[Mapping[str, Any]], mistake: str) -> None:
    """Raise `OutputError` if the latest answers, in a row, neither gave a valid output nor called another tool, and
    there are more of them than the agent's `output_retries`. `mistake`: what the last one did instead."""
    missed = 0
    for message in reversed(messages):
        if message.get("role") == "user" and message != CORRECTION:
            break
        if message.get("role") == "assistant":
            if any(call["function"]["name"] != FINAL_OUTPUT for call in message.get("tool_calls") or ()):
                break
            missed += 1
    if missed > agent.output_retries:
        answers = "1 answer" if missed == 1 else f"{missed} answers"
        raise OutputError(
            f"the model gave no valid output in {answers} (output_retries={agent.output_retries}). The last one: "
            f"{shorten(mistake, _SHOWN)}"
        )


def answer_text(response: "ChatCompletion") -> str | None:
    """The text of an answer; of a refusal, if it is one."""
    message = response.choices[0].message
    return message.content or message.refusal or message.content
