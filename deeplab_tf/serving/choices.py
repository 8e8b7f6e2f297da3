"""Choices for exports that the flags list too."""

TFLITE_PRECISIONS = ("float32", "float16", "dynamic", "int8")
ONNX_PRECISIONS = ("float32", "float16", "int8")
OPENVINO_PRECISIONS = ("float32", "float16", "bfloat16", "int8")
PRECISIONS = (*TFLITE_PRECISIONS, "bfloat16")
TFLITE_INPUTS = ("float32", "uint8")
TFLITE_OUTPUTS = ("labels", "category_mask", "logits", "probabilities")
# Largest image that the signature `encoded` accepts by default.
MAX_PIXELS = 1 << 24
