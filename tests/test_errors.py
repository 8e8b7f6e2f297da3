"""Text helpers of messages."""

import pytest

from deeplab_tf.errors import pluralize


@pytest.mark.parametrize(
    "phrase, one, many",
    [
        ("image(s)", "1 image", "1,200 images"),
        ("class(es)", "1 class", "1,200 classes"),
        (
            "label(s) (has|have) no image",
            "1 label has no image",
            "1,200 labels have no image",
        ),
    ],
)
def test_phrases_agree_with_their_count(phrase, one, many):
    assert pluralize(1, phrase) == one
    assert pluralize(1200, phrase) == many
    assert pluralize(0, phrase) == many.replace("1,200", "0")
