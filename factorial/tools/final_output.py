"""The tool that ends a run with a structured output.

The arguments of the model's call are the output. They are validated against the output type. Invalid ones become an
error result that the model sees, as for any tool.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from factorial.errors import ConfigError
from factorial.tools.function_tool import FunctionTool
from factorial.tools.schema import Parameters, json_schema, read_parameters

__all__ = ["FINAL_OUTPUT", "final_output_tool"]

FINAL_OUTPUT = "final_output"
"""The tool's name."""


def final_output_tool(output_type: Any) -> FunctionTool:
    """The tool for an output type. The `output_data` of its result is the validated output.

    An output type that is not an object in JSON (`list[str]`, `int`) becomes the tool's only argument, `output`. Raises
    `ConfigError` for a type that cannot be read from JSON.
    """
    if isinstance(output_type, str | bytes | int | float | Mapping | Sequence | Set):
        raise ConfigError(
            f"output_type={output_type!r} is not a type: give a pydantic model, as in class Answer(BaseModel): ..."
        )
    place = f"output_type={getattr(output_type, '__name__', output_type)}"
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(output_type)
    except PydanticSchemaGenerationError as error:
        reason = error.message.splitlines()[0]
        raise ConfigError(f"{place} cannot be read from JSON ({reason}): use a pydantic model") from None
    schema = json_schema(adapter, place)
    described = schema.pop("description", "Give the final output.")
    if schema.get("type") == "object" or "$ref" in schema:  # the schema of a recursive model is a reference
        parameters = Parameters({"type": "object"} | schema, lambda text: {"output": adapter.validate_json(text)}, ())
    else:
        parameters = _as_argument(output_type)
    return FunctionTool(
        FINAL_OUTPUT, described, parameters.json_schema, _final_output, is_final_output=True, parameters=parameters
    )


def _final_output(output: Any) -> Any:
    return output


def _as_argument(output_type: Any) -> Parameters:
    def final_output(output: Any) -> Any: ...

    final_output.__annotations__ = {"output": output_type}
    return read_parameters(final_output, {})
