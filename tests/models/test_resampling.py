"""Window means, and pooling windows that follow the image scale."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference_heads import IMAGE, assert_same, build, logits, resize_like, window_means

from deeplab_tf.models.network import scale_pooling_windows
from deeplab_tf.models.resampling import WindowMean, align_size
from deeplab_tf.models.variables import leaf_layers, official_variables

pytestmark = pytest.mark.usefixtures("stub_backbone")


@pytest.mark.parametrize(
    ("size", "stride", "aligned"),
    [(1, 16, 1), (2, 16, 17), (17, 16, 17), (18, 16, 33), (513, 8, 513), (500, 8, 505)],
)
def test_align_size_rounds_up_to_multiple_plus_one(size, stride, aligned):
    assert align_size(size, stride) == align_size(tf.constant(size), stride) == aligned


WINDOWS = [
    # (cells, arguments, window): ceil(33 / 8) = 5 and ceil(49 / 8) = 7 cells.
    ((10, 14), {"crop_size": (33, 49), "output_stride": 8}, (5, 7)),
    ((9, 13), {"crop_size": (33, 49), "output_stride": 8, "strides": (4, 5)}, (5, 7)),
    # The entire map, at 65 x 97 pixels.
    ((9, 13), {"crop_size": (65, 97), "output_stride": 8}, (9, 13)),
    # Rounded up: ceil(66 / 8) = 9 and ceil(98 / 16) = 7.
    ((12, 14), {"crop_size": (66, 98), "output_stride": 8}, (9, 13)),
    ((12, 14), {"crop_size": (66, 98), "output_stride": 16}, (5, 7)),
    # A grid over 5 and 7 cells: ceil(5 / 2) = 3 and ceil(7 / 3) = 3; 10 in four: 3.
    (
        (9, 8),
        {"crop_size": (33, 49), "output_stride": 8, "grid_size": (2, 3)},
        (3, 3),
    ),
    ((10, 7), {"grid_size": (4, 1)}, (3, 7)),
    ((7, 10), {"grid_size": (2, 2), "strides": (3, 2)}, (4, 5)),
    # At half the scale, 33 and 49 pixels are 17 and 25: 3 and 4 cells; at 1.5 times
    # int(32 * 1.5 + 1) = 49 and int(48 * 1.5 + 1) = 73: 7 and 10 cells.
    (
        (8, 9),
        {"crop_size": (33, 49), "output_stride": 8, "image_scale": 0.5},
        (3, 4),
    ),
    (
        (13, 12),
        {"crop_size": (33, 49), "output_stride": 8, "image_scale": 1.5},
        (7, 10),
    ),
    # Larger than the map on one side, and on both.
    ((4, 14), {"crop_size": (65, 49), "output_stride": 8}, (4, 7)),
    ((4, 5), {"crop_size": (769, 769), "output_stride": 8, "strides": (4, 5)}, (4, 5)),
    # No window: the entire map for any strides.
    ((4, 5), {}, (4, 5)),
    ((7, 6), {"strides": (2, 2), "image_scale": 0.5}, (7, 6)),
    # MobileNetV3 at 1025 x 2049 (reference, section 2.5): 25 x 25 -> 3 x 9.
    (
        (33, 65),
        {"crop_size": (769, 769), "output_stride": 32, "strides": (4, 5)},
        (25, 25),
    ),
]


@pytest.mark.parametrize(("cells", "options", "window"), WINDOWS)
def test_window_mean_equals_reference(cells, options, window):
    layer = WindowMean(**options)
    x = np.random.RandomState(0).standard_normal((2, *cells, 3)).astype("float32")
    expected = window_means(x, window, options.get("strides", (1, 1)))
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)
    open_sizes = tf.function(
        layer, input_signature=[tf.TensorSpec([None, None, None, 3])]
    )
    np.testing.assert_allclose(open_sizes(x), expected, atol=1e-6)
    known = layer(keras.Input((*cells, 3)))
    assert known.shape == (None, *expected.shape[1:])
    full = not {"crop_size", "grid_size"} & set(options)
    open_height = layer(keras.Input((None, cells[1], 3)))
    assert open_height.shape[1:] == ((1, 1, 3) if full else (None, None, 3))
    saved = WindowMean.from_config(layer.get_config())
    np.testing.assert_array_equal(saved(x), layer(x))


def test_mobilenet_v3_pools_1025x2049_image_to_3x9():
    cells, options, window = WINDOWS[-1]
    shape = WindowMean(**options)(keras.Input((*cells, 1))).shape
    assert (window, shape) == ((25, 25), (None, 3, 9, 1))


CROP = {"image_pooling_crop_size": "33,49"}


def pooling_windows(model):
    """Returns the pooling windows of a model for large features."""
    layers = [x for x in leaf_layers(model) if isinstance(x, WindowMean)]
    return [layer.window_size((99, 99)) for layer in layers]


def test_scaled_network_shares_variables():
    model, _ = build(output_stride=8, **CROP)
    half = scale_pooling_windows(model, 0.5)
    assert {id(v) for v in half.variables} == {id(v) for v in model.variables}
    # ceil(33 / 8) and ceil(49 / 8); int(32 / 2 + 1) = 17 and 25 pixels at half.
    assert (pooling_windows(model), pooling_windows(half)) == ([[5, 7]], [[3, 4]])
    # 1.5 of a half: int(32 * 0.75 + 1) = 25 and int(48 * 0.75 + 1) = 37.
    assert pooling_windows(scale_pooling_windows(half, 1.5)) == [[4, 5]]
    assert scale_pooling_windows(model, 1.0) is model
    full, _ = build()
    assert scale_pooling_windows(full, 0.5) is full


def test_scaled_network_equals_network_with_scaled_window():
    model, w = build(**CROP)
    other, _ = build(image_pooling_crop_size="17,25")
    assert list(official_variables(other)) == list(w)
    assert_same(scale_pooling_windows(model, 0.5)(IMAGE), other(IMAGE))
    difference = model(IMAGE) - other(IMAGE)
    assert np.abs(difference).max() > 1e-2 * np.std(other(IMAGE))


@pytest.mark.parametrize("method", ["avg", "max"])
def test_image_pyramid_scales_pooling_window(method):
    model, w = build(image_pyramid="0.5,1", merge_method=method, **CROP)
    full, one = build(**CROP)
    assert list(w) == list(one)
    # The image at half scale, 33 x 49 pixels, with half the window.
    half, _ = build(image_pooling_crop_size="17,25")
    small = tf.raw_ops.ResizeBilinear(images=IMAGE, size=(33, 49), align_corners=True)
    first, second = resize_like(logits(half, small), logits(full)), logits(full)
    merge = {"avg": lambda a, b: (a + b) / 2, "max": tf.maximum}[method]
    assert_same(logits(model), merge(first, second))
    # An unscaled window gives different logits.
    unscaled = resize_like(logits(full, small), second)
    assert np.abs(unscaled - first).max() > 1e-2 * np.std(first)
