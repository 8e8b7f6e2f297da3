"""Images are labelled in batches, in order."""

import numpy as np

from deeplab_tf.labelling.batches import Images, batch_by_size, label_images


def test_batch_ends_where_the_size_changes():
    sizes = (4, 4, 4, 5, 4, 4)
    images = [(i, np.zeros((size, 6, 3))) for i, size in enumerate(sizes)]
    batches = [[i for i, _ in batch] for batch in batch_by_size(iter(images), 2)]
    assert batches == [[0, 1], [2], [3], [4, 5]]


def test_every_writer_gets_every_image_with_its_labels():
    images = [(str(i), np.full((4, 6, 3), i, np.uint8)) for i in range(5)]
    written, names, batches = [], [], []

    def labeler(batch):
        batches.append(len(batch))
        return batch[..., 0] + np.int32(10)

    def write(name, image, labels):
        written.append((name, image.max(), labels.min(), labels.shape))

    count = label_images(
        Images(iter(images), None, "img"),
        labeler,
        batch_size=2,
        writers=[write, lambda name, *_: names.append(name)],
    )
    assert count == 5
    assert batches == [2, 2, 1]
    assert written == [(str(i), i, i + 10, (4, 6)) for i in range(5)]
    assert names == [name for name, *_ in written]
