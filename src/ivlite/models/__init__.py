"""The architectures that ivlite runs, one module each, named as in `general.architecture`."""

import importlib
import pkgutil

from ivlite.errors import ModelFileError


def architectures():
    """Names of the supported architectures, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def module(architecture, path="the model file"):
    """The model module of that name. Raises ModelFileError for an unknown architecture."""
    known = architectures()
    if architecture not in known:
        raise ModelFileError(
            f"{path} has architecture {architecture!r}, and ivlite runs {', '.join(known)}; "
            "convert an InternVideo3 checkpoint with `ivlite quantize`"
        )
    return importlib.import_module(f"ivlite.models.{architecture}")
