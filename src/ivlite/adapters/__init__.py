"""Models of ivlite for evaluation harnesses; each module imports one harness."""

from typing import Any


def lmms_eval_model() -> Any:
    """What lmms-eval finds under the entry point `lmms_eval.models`: the model `ivlite`, for both of its kinds of tasks."""
    from lmms_eval.models.registry_v2 import ModelManifest

    where = f"{__name__}.lmms_eval"
    return ModelManifest("ivlite", chat_class_path=f"{where}.Chat", simple_class_path=f"{where}.Simple")
