"""For tests and demonstrations of agents: a model that plays a script.

It is not a language model. Nothing here uses the network.
"""

from factorial.testing.scripted import Reply, ScriptedModel, call, calls, say

__all__ = ["Reply", "ScriptedModel", "call", "calls", "say"]
