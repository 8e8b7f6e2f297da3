"""Writes a SavedModel as a frozen graph, for clients of the official export."""

import tensorflow as tf

from deeplab_tf.files import outputs
from deeplab_tf.serving.constant_graph import freeze
from deeplab_tf.serving.signatures import INPUT, SERVING

FROZEN = ".pb"


def write_frozen_graph(saved_model: str, path: str) -> None:
    """Writes `serving_default` of a SavedModel as a graph without variables.

    It has the names of the official frozen graphs, `ImageTensor:0` and
    `SemanticPredictions:0`, but accepts any number of images.

    Raises:
        UserError: if `path` exists and deeplab_tf did not write it.
    """
    loaded = tf.saved_model.load(saved_model)
    signature = loaded.signatures[SERVING]

    def serve(images):
        outputs = signature(**{INPUT: images})
        return [tf.identity(output, name) for name, output in outputs.items()]

    image = signature.structured_input_signature[1][INPUT]
    spec = tf.TensorSpec(image.shape, image.dtype, INPUT)
    concrete = tf.function(serve, autograph=False).get_concrete_function(spec)
    graph = freeze(concrete).graph.as_graph_def()
    outputs.write_bytes(graph.SerializeToString(), path)
