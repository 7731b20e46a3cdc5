"""Tools: functions that a model can call.

A tool is defined in `function_tool`, described to the model by `schema` and `docstring`, called by `call`, and
what it returns is put into shape by `output`.
"""

from factorial.tools.call import call_tool
from factorial.tools.deferred import Deferral, deferred_result, forking_tool
from factorial.tools.final_output import FINAL_OUTPUT, final_output_tool
from factorial.tools.function_tool import FunctionTool, build_tools, function_tool
from factorial.tools.output import FunctionToolAction, FunctionToolActionResult
from factorial.tools.schema import execution_parameters

__all__ = [
    "FINAL_OUTPUT", "Deferral", "FunctionTool", "FunctionToolAction", "FunctionToolActionResult", "build_tools",
    "call_tool", "deferred_result", "execution_parameters", "final_output_tool", "forking_tool", "function_tool",
]  # fmt: skip
