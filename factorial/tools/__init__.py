"""Tools: functions that a model can call.

`function_tool` defines a tool, from what `inspection`, `schema` and `docstring` read of the function. `call` calls it,
and `output` makes the result of what it returned. `deferred` has the tools whose results come later, and
`final_output` the tool that ends a run.

`tool`, `AgentTool`, `AgentToolAction` and `AgentToolActionResult` are `function_tool`, `FunctionTool`,
`FunctionToolAction` and `FunctionToolActionResult` by the names that nfactorial 0.1.31 gave them.
"""

from factorial.tools.call import call_tool
from factorial.tools.deferred import Deferral, deferred_result, deferred_tool, forking_tool
from factorial.tools.final_output import FINAL_OUTPUT, final_output_tool
from factorial.tools.function_tool import AgentTool, FunctionTool, build_tools, function_tool, tool
from factorial.tools.inspection import execution_parameters
from factorial.tools.output import (
    AgentToolAction,
    AgentToolActionResult,
    FunctionToolAction,
    FunctionToolActionResult,
)
from factorial.tools.sub_tasks import sub_task_results

__all__ = [
    "FINAL_OUTPUT", "AgentTool", "AgentToolAction", "AgentToolActionResult", "Deferral", "FunctionTool",
    "FunctionToolAction", "FunctionToolActionResult", "build_tools", "call_tool", "deferred_result", "deferred_tool",
    "execution_parameters", "final_output_tool", "forking_tool", "function_tool", "sub_task_results",
    "tool",
]  # fmt: skip
