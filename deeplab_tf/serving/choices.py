"""Choices for exports that the flags list too."""

TFLITE_PRECISIONS = ("float32", "float16", "dynamic", "int8")
OPENVINO_PRECISIONS = ("float32", "float16", "bfloat16", "int8")
PRECISIONS = (*TFLITE_PRECISIONS, "bfloat16")
TFLITE_OUTPUTS = ("labels", "logits")
# Largest image that the signature `encoded` accepts by default.
MAX_PIXELS = 1 << 24
