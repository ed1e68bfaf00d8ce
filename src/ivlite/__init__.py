"""ivlite: ask questions about videos with InternVideo3 on your own machine.

model = ivlite.load("model.gguf")
reply = model.chat([{"role": "user", "content": [{"type": "video", "video": "clip.mp4"},
                                                 {"type": "text", "text": "What happens?"}]}])
print(reply.text)
"""

import importlib

from ivlite._version import __version__

TYPE_CHECKING = False  # type checkers know the name; importing typing would take some milliseconds
if TYPE_CHECKING:  # the same names as below, for type checkers and editors
    from ivlite.engine.batch import Engine as Engine
    from ivlite.engine.batch import together as together
    from ivlite.engine.calls import ToolCall as ToolCall
    from ivlite.engine.reply import Reply as Reply
    from ivlite.engine.sampling import SamplingParams as SamplingParams
    from ivlite.errors import IvliteError as IvliteError
    from ivlite.errors import Stopped as Stopped
    from ivlite.loading import load as load
    from ivlite.model import Model as Model
    from ivlite.session import Session as Session
    from ivlite.stop import Stop as Stop

# Imported when first used: `ivlite --help` must not wait for numpy.
_LAZY = {
    "load": "ivlite.loading",
    "Model": "ivlite.model",
    "Engine": "ivlite.engine.batch",
    "together": "ivlite.engine.batch",
    "Reply": "ivlite.engine.reply",
    "SamplingParams": "ivlite.engine.sampling",
    "Session": "ivlite.session",
    "Stop": "ivlite.stop",
    "Stopped": "ivlite.errors",
    "ToolCall": "ivlite.engine.calls",
    "IvliteError": "ivlite.errors",
}

__all__ = ["__version__", *_LAZY]

if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has every name

    def __getattr__(name):
        if name in _LAZY:
            return getattr(importlib.import_module(_LAZY[name]), name)
        raise AttributeError(f"module 'ivlite' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
