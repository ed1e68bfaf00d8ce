"""ivlite: ask questions about videos with InternVideo3 on your own machine.

model = ivlite.load("model.gguf")
reply = model.chat([{"role": "user", "content": [{"type": "video", "video": "clip.mp4"},
                                                 {"type": "text", "text": "What happens?"}]}])
print(reply.text)
"""

import importlib

from ivlite._version import __version__

# Imported when first used: `ivlite --help` must not wait for numpy.
_LAZY = {
    "load": "ivlite.model",
    "Model": "ivlite.model",
    "Reply": "ivlite.engine.reply",
    "SamplingParams": "ivlite.engine.sampling",
    "Stop": "ivlite.stop",
    "Stopped": "ivlite.errors",
    "IvliteError": "ivlite.errors",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ivlite' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LAZY])
