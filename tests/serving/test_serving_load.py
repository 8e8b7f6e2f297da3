"""Memory and latency of exports under load, with hostile requests."""

import numpy as np
import pytest
import tensorflow as tf
from hostile_images import HOSTILE_IMAGES
from program_runs import assert_refused, run

from benchmarks.serving_load import measure_load, noise_jpegs
from deeplab_tf.labelling.prediction import predict_labels

PROGRAM = "benchmarks.serving_load"


def test_latencies_and_memory_are_printed(tiny_export):
    sizes = ("--smallest=8", "--largest=24")
    path = f"--export_path={tiny_export}"
    out = run(PROGRAM, path, "--requests=8", "--clients=2", *sizes)
    requests, latencies, memory = out.splitlines()
    assert requests.startswith("8 requests, 2 at a time: ")
    assert requests.endswith(" a second, 0 errors")
    assert latencies.startswith("latency in ms: median ") and " 99% " in latencies
    assert memory.startswith("memory: ") and memory.endswith(" MiB at last")


def test_invalid_arguments_are_refused(tmp_path, tiny_export):
    path = f"--export_path={tiny_export}"
    assert_refused(
        "--smallest=99 exceeds", PROGRAM, path, "--smallest=99", "--largest=9"
    )
    module = tf.Module()
    module.double = tf.function(lambda x: 2 * x, [tf.TensorSpec([], tf.float32, "x")])
    tf.saved_model.save(module, str(tmp_path), signatures={"double": module.double})
    assert_refused("no signature encoded", PROGRAM, f"--export_path={tmp_path}")


@pytest.mark.slow
def test_memory_is_flat_under_mixed_requests(tiny_model, tiny_export):
    loaded = tf.saved_model.load(tiny_export)
    random = np.random.RandomState(0)
    good, bad = noise_jpegs(16, 160, 60), list(HOSTILE_IMAGES.values())
    # oneDNN caches up to a thousand primitives, one per size, so that memory only
    # settles in the second thousand requests.
    kinds = [bad if i % 20 == 7 else good for i in range(2000)]
    requests = [kind[random.randint(len(kind))] for kind in kinds]
    load = measure_load(loaded.signatures["encoded"], requests, clients=4)
    is_bad = [request in bad for request in requests]
    assert [bool(error) for error in load.errors] == is_bad
    assert sum(is_bad) == 100
    first, last = load.growth
    assert last <= 1.03 * first
    single_size = measure_load(loaded.signatures["encoded"], 800 * good[:1], clients=4)
    first, last = single_size.growth
    assert last <= 1.002 * first
    # The labels are still correct.
    image = tf.io.decode_jpeg(good[0])[None]
    served = loaded.signatures["serving_default"](ImageTensor=image)
    np.testing.assert_array_equal(
        served["SemanticPredictions"], predict_labels(tiny_model, image)
    )
