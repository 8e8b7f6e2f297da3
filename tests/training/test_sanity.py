"""--sanity_overfit: accepts matching labels and rejects shuffled ones."""

import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf import (
    ContextConfig,
    DataConfig,
    DecoderConfig,
    ModelConfig,
    TrainConfig,
    build_model,
    load_dataset,
)
from deeplab_tf.training import sanity


def crops(records, batch_size=8):
    config = DataConfig(
        dataset_dir=records, crop_size=(129, 129), batch_size=batch_size
    )
    return load_dataset(config, "train", training=True)


def swap_labels(images, labels):
    """Pairs each image with the labels of another one."""
    return images, tf.roll(labels, 1, 0)


def shuffle_pixels(images, labels):
    """Shuffles the pixels of each label map."""
    shuffled = [tf.random.shuffle(tf.reshape(x, (-1, 1))) for x in tf.unstack(labels)]
    return images, tf.reshape(tf.stack(shuffled), labels.shape)


def test_real_labels_pass_the_border_check(voc_records):
    verdict = sanity.check_borders(crops(voc_records), 255)
    assert verdict.fits, verdict


@pytest.mark.parametrize("shuffled", [swap_labels, shuffle_pixels])
@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_labels_fail_the_border_check(shuffled, seed, voc_records):
    tf.keras.utils.set_random_seed(seed)
    data = crops(voc_records).skip(8 * seed).map(shuffled)
    verdict = sanity.check_borders(data, 255)
    assert not verdict.fits, verdict
    assert "the labels seem to belong to other images" in str(verdict)


def test_too_few_borders_give_no_warning():
    images, labels = (
        np.zeros((4, 9, 9, 3), np.float32),
        np.zeros((4, 9, 9, 1), np.uint8),
    )
    data = tf.data.Dataset.from_tensors((images, labels)).repeat()
    verdict = sanity.check_borders(data, 255)
    assert verdict.fits
    assert "not checked, only 0 of 64 crops have any" in str(verdict)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shuffled", "message"),
    [
        (None, "sanity: yes"),
        (swap_labels, "of other images"),
        (shuffle_pixels, "the model cannot overfit one batch, so check the labels"),
    ],
)
def test_only_matching_labels_pass_the_overfitting_check(
    shuffled, message, voc_records
):
    tf.keras.utils.set_random_seed(0)
    context = ContextConfig(rates=(), filters=64)
    decoder = DecoderConfig(output_strides=())
    model = build_model(ModelConfig(context=context, decoder=decoder))
    data = crops(voc_records, 4)
    verdict = sanity.check(
        model, TrainConfig(), data.map(shuffled) if shuffled else data
    )
    assert verdict.fits == (shuffled is None), verdict
    assert message in str(verdict)


@pytest.mark.slow
def test_unlabelled_batch_fails_the_sanity_check():
    model = build_model(
        ModelConfig(
            depth_multiplier=0.1,
            context=ContextConfig(rates=(), filters=16),
            decoder=DecoderConfig(output_strides=()),
        )
    )
    batch = np.zeros((2, 33, 33, 3), np.float32), np.full((2, 33, 33, 1), 255, np.uint8)
    data = tf.data.Dataset.from_tensors(batch).repeat()
    assert not sanity.check(model, TrainConfig(), data).fits
