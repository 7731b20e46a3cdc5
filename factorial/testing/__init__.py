"""For tests and demonstrations of your own agents: a model that plays a script.

It is not a language model: nothing here is clever, and nothing here calls a network.
"""

from factorial.testing.scripted import Reply, ScriptedModel, call, calls, say

__all__ = ["Reply", "ScriptedModel", "call", "calls", "say"]
