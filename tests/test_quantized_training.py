"""The recipe of docs/training.md: int8 after quantisation-aware training."""

import numpy as np
import program_runs
import pytest

import deeplab_tf
from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.restore import quantize_with_ranges
from deeplab_tf.config import DataConfig
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.evaluation.confusion import confusion_matrix, mean_iou
from deeplab_tf.inference import Predictor

CLASSES, VOID = 21, 255
SIZE = (513, 513)
# Smallest share of labels that an export has in common with the quantised model.
AGREEMENT = 0.99


def predict(predictor, batches) -> list[np.ndarray]:
    return [np.asarray(predictor.labels(images)) for images, _ in batches]


def score(labels, batches) -> float:
    counts = [
        confusion_matrix(truth, predicted, CLASSES, VOID)
        for predicted, (_, truth) in zip(labels, batches, strict=True)
    ]
    return mean_iou(np.sum(counts, 0))


@pytest.fixture(scope="module")
def batches(voc_records):
    dataset = load_dataset(DataConfig(voc_records, batch_size=1), "val", False)
    return [(x.numpy(), y.numpy()) for x, y in dataset]


@pytest.fixture(scope="module")
def quantized(voc_checkpoint, voc_records, tmp_path_factory):
    """The official MobileNetV2, fine-tuned on the 93 training images."""
    logs = str(tmp_path_factory.mktemp("qat") / "logs")
    program_runs.run(
        *("deeplab_tf.programs.train", f"--dataset_dir={voc_records}"),
        *(f"--train_logdir={logs}", f"--tf_initial_checkpoint={voc_checkpoint}"),
        *("--model_variant=mobilenet_v2", "--output_stride=16"),
        *("--train_crop_size=321,321", "--train_batch_size=4"),
        *("--base_learning_rate=3e-5", "--training_number_of_steps=100"),
        "--quantize_delay_step=0",
    )
    arrays = tf1.read_checkpoint(logs).arrays
    return quantize_with_ranges(deeplab_tf.from_pretrained(logs), arrays, logs)


def write_tflite(model, path):
    deeplab_tf.export_tflite(model, path, SIZE, "int8")


def write_onnx(model, path):
    deeplab_tf.export_onnx(model, path, precision="int8")


def write_openvino(model, path):
    deeplab_tf.export_openvino(model, path, precision="int8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "write", "name", "crop_size"),
    [
        ("ai_edge_litert.interpreter", write_tflite, "m.tflite", SIZE),
        ("onnxruntime", write_onnx, "m.onnx", None),
        ("openvino", write_openvino, "m.xml", None),
    ],
)
def test_int8_is_at_most_a_tenth_of_a_point_below_float32(
    voc_checkpoint, quantized, batches, tmp_path, engine, write, name, crop_size
):
    pytest.importorskip(engine)
    path = str(tmp_path / name)
    write(quantized, path)
    labels = predict(deeplab_tf.load_artefact(path), batches)
    expected = predict(Predictor(quantized, crop_size=crop_size), batches)
    pairs = zip(labels, expected, strict=True)
    agreement = np.mean([np.mean(a == b) for a, b in pairs])
    official = Predictor(
        deeplab_tf.from_pretrained(voc_checkpoint), crop_size=crop_size
    )
    scores = [score(x, batches) for x in (labels, predict(official, batches))]
    print(f"{name}: mIoU {scores[0]:.4f}, float32 {scores[1]:.4f}, {agreement:.4f}")
    assert scores[0] > scores[1] - 0.001
    assert agreement >= AGREEMENT
