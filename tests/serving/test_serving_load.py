"""A thousand requests, four at a time, some of them hostile."""

import numpy as np
import pytest
import tensorflow as tf
from hostile_images import HOSTILE_IMAGES
from program_runs import assert_refused, run

from benchmarks.serving_load import measure_load, noise_jpegs
from deeplab_tf.inference import predict_labels

PROGRAM = "benchmarks.serving_load"


def test_latencies_and_memory_are_printed(tiny_export):
    sizes = ("--smallest=8", "--largest=24")
    path = f"--export_path={tiny_export}"
    out = run(PROGRAM, path, "--requests=8", "--clients=2", *sizes)
    requests, latencies, memory = out.splitlines()
    assert requests.startswith("8 requests, 2 at a time: ")
    assert requests.endswith(" a second, 0 errors")
    assert latencies.startswith("latency in ms: median ") and " 99 % " in latencies
    assert memory.startswith("memory: ") and memory.endswith(" MiB at last")


def test_mistakes_are_told(tmp_path, tiny_export):
    path = f"--export_path={tiny_export}"
    assert_refused(
        "--smallest=99 exceeds", PROGRAM, path, "--smallest=99", "--largest=9"
    )
    module = tf.Module()
    module.double = tf.function(lambda x: 2 * x, [tf.TensorSpec([], tf.float32, "x")])
    tf.saved_model.save(module, str(tmp_path), signatures={"double": module.double})
    assert_refused("no signature encoded", PROGRAM, f"--export_path={tmp_path}")


@pytest.mark.slow
def test_mixed_requests_leave_memory_flat(tiny_model, tiny_export):
    loaded = tf.saved_model.load(tiny_export)
    random = np.random.RandomState(0)
    good, bad = noise_jpegs(16, 160, 60), list(HOSTILE_IMAGES.values())
    # For each new size oneDNN keeps what it prepared, up to a thousand times, which is
    # what the second thousand is for.
    kinds = [bad if i % 20 == 7 else good for i in range(2000)]
    pictures = [kind[random.randint(len(kind))] for kind in kinds]
    load = measure_load(loaded.signatures["encoded"], pictures, clients=4)
    told = [picture in bad for picture in pictures]
    assert [bool(error) for error in load.errors] == told
    assert sum(told) == 100
    first, last = load.growth
    assert last <= 1.03 * first
    of_one_size = measure_load(loaded.signatures["encoded"], 800 * good[:1], clients=4)
    first, last = of_one_size.growth
    assert last <= 1.002 * first
    # It still answers as at the beginning.
    image = tf.io.decode_jpeg(good[0])[None]
    served = loaded.signatures["serving_default"](ImageTensor=image)
    np.testing.assert_array_equal(
        served["SemanticPredictions"], predict_labels(tiny_model, image)
    )
