"""The video agent: a loop in which a model looks at parts of videos until its answer holds.

with ivlite.agent.Agent(model, ["talk.mp4"]) as agent:
    answer = agent.ask("When is the error on the slide corrected?")
    print(answer.text, [e.start for e in answer.cited()])
"""

import importlib

TYPE_CHECKING = False  # type checkers know the name; importing typing would take some milliseconds
if TYPE_CHECKING:
    from ivlite.agent.agent import Agent as Agent
    from ivlite.agent.answer import Answer as Answer
    from ivlite.agent.answer import Claim as Claim
    from ivlite.agent.answer import Evidence as Evidence
    from ivlite.agent.budget import Budget as Budget
    from ivlite.agent.tools import TOOLS as TOOLS
    from ivlite.agent.tools import Tool as Tool

# Imported when first used: whoever wants the types of an answer only must not wait for numpy.
_LAZY = {
    "Agent": "ivlite.agent.agent",
    "Answer": "ivlite.agent.answer",
    "Claim": "ivlite.agent.answer",
    "Evidence": "ivlite.agent.answer",
    "Budget": "ivlite.agent.budget",
    "TOOLS": "ivlite.agent.tools",
    "Tool": "ivlite.agent.tools",
}

__all__ = [*_LAZY]

if not TYPE_CHECKING:

    def __getattr__(name):
        if name in _LAZY:
            return getattr(importlib.import_module(_LAZY[name]), name)
        raise AttributeError(f"module 'ivlite.agent' has no attribute {name!r}")
