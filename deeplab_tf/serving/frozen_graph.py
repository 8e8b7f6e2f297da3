"""A SavedModel as a frozen graph, for clients of the official export."""

import tensorflow as tf

from deeplab_tf.files import outputs
from deeplab_tf.serving.constant_graph import freeze
from deeplab_tf.serving.signatures import INPUT, SERVING

# What such a file ends with.
FROZEN = ".pb"


def write_frozen_graph(saved_model: str, path: str) -> None:
    """Writes the signature that labels images as one graph without variables.

    A client of the official frozen graphs imports it and fetches
    `SemanticPredictions:0` for `ImageTensor:0`, which here takes any number of images.

    Args:
        saved_model: Folder of an export.
        path: File to write, atomically; our own earlier output is replaced.

    Raises:
        UserError: if there is another file at `path`.
    """
    loaded = tf.saved_model.load(saved_model)
    signature = loaded.signatures[SERVING]

    def serve(images):
        outputs = signature(**{INPUT: images})
        return [tf.identity(output, name) for name, output in outputs.items()]

    taken = signature.structured_input_signature[1][INPUT]
    spec = tf.TensorSpec(taken.shape, taken.dtype, INPUT)
    concrete = tf.function(serve, autograph=False).get_concrete_function(spec)
    graph = freeze(concrete).graph.as_graph_def()
    outputs.write_bytes(graph.SerializeToString(), path)
