"""Choices for exports that the flags list too."""

TFLITE_PRECISIONS = ("float32", "float16", "dynamic", "int8")
TFLITE_OUTPUTS = ("labels", "logits")
# Largest image that the signature `encoded` accepts by default.
MAX_PIXELS = 1 << 24
