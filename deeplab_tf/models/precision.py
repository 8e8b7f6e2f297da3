"""The floating-point format that models compute in."""

import keras


def use_precision(precision: str) -> None:
    """Lets models that are built from now on compute in a precision.

    Variables and logits stay float32.

    Args:
        precision: "float32", "bfloat16" or "float16".
    """
    mixed = "" if precision == "float32" else "mixed_"
    keras.config.set_dtype_policy(mixed + precision)
