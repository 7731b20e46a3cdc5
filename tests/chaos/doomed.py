"""An agent whose processes end by themselves, a moment after they got ready."""

import os
import threading

from factorial import Agent
from factorial.supervisor.process.lifeline import Lifeline, inside_child
from factorial.testing import ScriptedModel, say

doomed = Agent(name="doomed", model=ScriptedModel([say("never said")]))


tell = Lifeline.ready


def tell_and_die(lifeline: Lifeline) -> None:
    tell(lifeline)
    threading.Timer(0.3, os._exit, (3,)).start()


if inside_child():
    Lifeline.ready = tell_and_die  # type: ignore[method-assign, assignment]
