"""Checks the models passed to functions of this package."""

from typing import Any


class _BuiltModel:
    """Accepts models that have a `model_config`."""

    def __contains__(self, model: Any) -> bool:
        return hasattr(model, "model_config")

    def __str__(self) -> str:
        return "made by build_model or from_pretrained"


BUILT = _BuiltModel()
