"""Tools: functions that a model can call.

`function_tool` defines a tool, from what `inspection`, `schema` and `docstring` read of the function. `call` calls it,
and `output` makes the result of what it returned. `deferred` has the tools whose results come later, and
`final_output` the tool that ends a run.
"""

from factorial.tools.call import call_tool
from factorial.tools.deferred import Deferral, deferred_result, forking_tool
from factorial.tools.final_output import FINAL_OUTPUT, final_output_tool
from factorial.tools.function_tool import FunctionTool, build_tools, function_tool
from factorial.tools.inspection import execution_parameters
from factorial.tools.output import FunctionToolAction, FunctionToolActionResult

__all__ = [
    "FINAL_OUTPUT", "Deferral", "FunctionTool", "FunctionToolAction", "FunctionToolActionResult", "build_tools",
    "call_tool", "deferred_result", "execution_parameters", "final_output_tool", "forking_tool", "function_tool",
]  # fmt: skip
