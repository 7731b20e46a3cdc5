"""Tools: functions that a model can call.

A tool is defined in `function_tool`, described to the model by `schema` and `docstring`, called by `call`, and
what it returns is put into shape by `output`.
"""

from factorial.tools.call import call_tool
from factorial.tools.final_output import FINAL_OUTPUT, final_output_tool
from factorial.tools.function_tool import FunctionTool, build_tools, function_tool, tool_param
from factorial.tools.output import FunctionToolActionResult

__all__ = [
    "FINAL_OUTPUT", "FunctionTool", "FunctionToolActionResult", "build_tools", "call_tool", "final_output_tool",
    "function_tool", "tool_param",
]  # fmt: skip
