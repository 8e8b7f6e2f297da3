"""Which models the functions of this package accept."""

from typing import Any


class _Built:
    """Models that know their configuration."""

    def __contains__(self, model: Any) -> bool:
        return hasattr(model, "model_config")

    def __str__(self) -> str:
        return "made by build_model or from_pretrained"


BUILT = _Built()
