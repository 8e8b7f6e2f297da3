"""Trimap curves and boundary IoU on small maps, counted by hand."""

import json

import cv2
import numpy as np
import pytest

from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.boundary import BoundaryIoU, TrimapCurve

VOID = 255
# An object in a ring of void, as in PASCAL VOC.
RINGED = """
    0 0 0 0 0 0 0
    0 v v v v v 0
    0 v 1 1 1 v 0
    0 v 1 1 1 v 0
    0 v 1 1 1 v 0
    0 v v v v v 0
    0 0 0 0 0 0 0
"""


def parse_map(drawing):
    """Parses a drawing of digits and `v` (void) into a label map."""
    rows = [row.split() for row in drawing.strip().splitlines()]
    return np.array(
        [[VOID if c == "v" else int(c) for c in row] for row in rows]
    ).astype(np.uint8)


def random_maps(count, classes=4):
    """Returns coarse label maps with some void and stray pixels, and predictions."""
    random = np.random.RandomState(0)
    maps = []
    for height, width in random.randint(20, 60, (count, 2)):
        coarse = random.randint(0, classes, (5, 6)).astype(np.uint8)
        size = (int(width), int(height))
        truth = cv2.resize(coarse, size, interpolation=cv2.INTER_NEAREST)
        prediction = np.roll(truth, random.randint(-3, 4, 2), (0, 1)).astype(np.int32)
        truth[random.random_sample(truth.shape) < 0.01] = VOID
        truth[random.random_sample(truth.shape) < 0.01] = classes
        maps.append((truth, prediction))
    return maps


def accumulate(measure, maps):
    for truth, prediction in maps:
        measure.update(truth, prediction, None)
    return measure


def score(measure, truth, prediction):
    """Returns the metrics of one image after a round trip through JSON."""
    truth, prediction = np.array(truth, np.uint8), np.array(prediction, np.int32)
    metrics = accumulate(measure, [(truth, prediction)]).metrics()
    return json.loads(json.dumps(metrics, allow_nan=False))


def test_trimap_scores_bands_around_void():
    truth = parse_map(RINGED)
    prediction = np.zeros_like(truth)
    prediction[3, 3] = 1
    metrics = score(TrimapCurve(2, VOID, (1, 2, 9)), truth, prediction)
    # At distance 1, there are 8 pixels of the object and 20 outside it. The object's
    # center is at 2, the corners of the map at 1.41; no pixel is farther away.
    assert metrics["pixels"] == [28, 33, 33]
    # Of the object's 9 pixels, only the center is correct.
    narrow, wide = (20 / 28 + 0) / 2, (24 / 32 + 1 / 9) / 2
    assert metrics["miou"] == pytest.approx([narrow, wide, wide])
    assert metrics["pixel_accuracy"] == pytest.approx([20 / 28, 25 / 33, 25 / 33])
    assert metrics["around"] == "void" and metrics["widths"] == [1, 2, 9]


def test_trimap_scores_bands_around_class_boundaries():
    truth = parse_map("""
        0 0 0 0
        0 0 0 0
        0 0 1 1
    """)
    metrics = score(TrimapCurve(2, VOID, (1, 2, 3, 4), "classes"), truth, 0 * truth)
    # The rim is 3 pixels of class 0 and both of class 1. From it, 4 more are 1 away, 2
    # are 1.41 away and the corner is 2.24 away; the rim itself is at distance 1.
    assert metrics["pixels"] == [5, 9, 11, 12]
    assert metrics["pixel_accuracy"] == pytest.approx([3 / 5, 7 / 9, 9 / 11, 10 / 12])
    # All pixels of class 0 are correct, and none of class 1.
    assert metrics["miou"] == pytest.approx([3 / 10, 7 / 18, 9 / 22, 10 / 24])


def test_void_next_to_a_class_is_not_a_class_boundary():
    curve = TrimapCurve(3, VOID, (1, 2, 3), "classes")
    assert score(curve, parse_map(RINGED), parse_map(RINGED) % 2)["pixels"] == [0, 0, 0]
    curve.reset()
    # The 0 is two pixels from the rim between 1 and 2, and so at distance 3.
    metrics = score(curve, parse_map("0 v 1 2"), [[0, 0, 1, 1]])
    assert metrics["pixels"] == [2, 2, 3]
    # The IoU of class 1 is 1/2, of class 2 it is 0, and of class 0, at width 3, 1.
    assert metrics["miou"] == pytest.approx([1 / 4, 1 / 4, 1 / 2])


def test_image_border_is_not_a_trimap_boundary():
    truth = parse_map("0 0 0 v 1 1 1 1")
    around_void = score(TrimapCurve(2, VOID, (1, 3, 4)), truth, truth % 2)
    assert around_void["pixels"] == [2, 6, 7]
    nothing = score(TrimapCurve(2, VOID, (1, 3), "classes"), 0 * truth, 0 * truth)
    assert nothing["pixels"] == [0, 0]
    assert score(TrimapCurve(2, VOID, (1,)), 0 * truth, 0 * truth)["pixels"] == [0]


@pytest.mark.parametrize("around", ["void", "classes"])
def test_band_edges_are_exact(around):
    # 5, 10 and 13 are also lengths of diagonals (3-4-5, 6-8-10, 5-12-13), on an edge.
    widths = np.array([1, 2, 3, 5, 10, 13])
    for truth, prediction in random_maps(6):
        scored = truth < 4
        sources = ~scored if around == "void" else reference_rim(truth, scored)
        reach = widths if around == "void" else widths - 1
        ys, xs = np.nonzero(sources)
        y, x = np.indices(truth.shape)[..., None]
        squares = ((y - ys) ** 2 + (x - xs) ** 2).min(-1)
        expected = [int((scored & (squares <= r * r)).sum()) for r in reach]
        assert expected[-1] > expected[0] > 0
        curve = TrimapCurve(4, VOID, widths, around)
        assert score(curve, truth, prediction)["pixels"] == expected


def reference_rim(truth, scored):
    rim = np.zeros(truth.shape, bool)
    height, width = truth.shape
    for y, x in np.argwhere(scored):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= v < height and 0 <= u < width
            rim[y, x] |= inside and scored[v, u] and truth[v, u] != truth[y, x]
    return rim


def test_boundary_iou_matches_hand_computed_values():
    # A 5 x 5 square, predicted one pixel too far to the right. The image diagonal is
    # 10.6, so that a boundary of the paper's ratio is one pixel wide.
    truth, prediction = np.zeros((2, 7, 8), np.uint8)
    truth[1:6, 1:6] = prediction[1:6, 2:7] = 1
    metrics = score(BoundaryIoU(3, VOID), truth, prediction)
    # The rims of 16 pixels share 4 above and 4 below. All 31 pixels around a square
    # touch it or the image border; 16 + 10 of them do so in both maps.
    ious = [26 / (31 + 31 - 26), 8 / (16 + 16 - 8)]
    assert metrics["per_class"] == pytest.approx([*ious, None])
    assert metrics["boundary_iou"] == pytest.approx(np.mean(ious))
    assert metrics["ratio"] == 0.02


def test_interior_pixels_do_not_count():
    truth = np.zeros((9, 9), np.uint8)
    prediction = truth.copy()
    # 12.7 * 0.16 rounds to 2, so that eroding the image leaves 5 x 5 pixels.
    prediction[3:6, 3:6] = 1
    measure = BoundaryIoU(2, VOID, 0.16)
    metrics = score(measure, truth, prediction)
    # All of the prediction but the hole is within 2 of the border or of the hole.
    assert metrics["per_class"] == [(81 - 25) / (81 - 9), 0]
    assert measure.counts.tolist() == [[56, 0, 0], [0, 0, 0], [16, 9, 0]]


def test_void_is_removed_from_the_prediction_too():
    truth = np.zeros((9, 9), np.uint8)
    truth[4, 4] = VOID
    measure = BoundaryIoU(1, VOID)
    assert score(measure, truth, 0 * truth)["per_class"] == [1]
    # 32 along the image's border and 8 around the hole.
    assert measure.counts.tolist() == [[40, 0], [0, 41]]


def mask_to_boundary(mask, dilation_ratio):
    """Returns the boundary of a mask by the method of the paper's authors."""
    height, width = mask.shape
    dilation = round(dilation_ratio * np.sqrt(height**2 + width**2))
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    kernel = np.ones((3, 3), np.uint8)
    eroded = cv2.erode(padded, kernel, iterations=max(1, dilation))
    return mask - eroded[1 : height + 1, 1 : width + 1] > 0


@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.07, 0.3, 2])
def test_boundary_iou_matches_erosion(ratio):
    maps = random_maps(8)
    both, either = np.zeros((2, 4), int)
    for truth, prediction in maps:
        for i in range(4):
            a, b = (
                mask_to_boundary(((m == i) & (truth < 4)).astype(np.uint8), ratio)
                for m in (truth, prediction)
            )
            both[i] += (a & b).sum()
            either[i] += (a | b).sum()
    metrics = accumulate(BoundaryIoU(4, VOID, ratio), maps).metrics()
    assert metrics["per_class"] == (both / either).tolist()
    assert metrics["boundary_iou"] == pytest.approx((both / either).mean())


MEASURES = [
    lambda classes, ignored: TrimapCurve(classes, ignored, (1, 2, 40)),
    lambda classes, ignored: TrimapCurve(classes, ignored, (1, 2, 40), "classes"),
    lambda classes, ignored: BoundaryIoU(classes, ignored, 0.05),
]


@pytest.mark.parametrize("make", MEASURES)
def test_result_is_independent_of_order_and_workers(make):
    maps = random_maps(5)
    full = accumulate(make(4, VOID), maps)
    first, rest = (
        accumulate(make(4, VOID), maps[:2]),
        accumulate(make(4, VOID), maps[2:]),
    )
    assert full.counts.dtype == np.int64 and full.counts.sum() > 0
    assert rest.metrics() != full.metrics()
    assert accumulate(make(4, VOID), maps[::-1]).metrics() == full.metrics()
    first.counts += rest.counts
    assert first.metrics() == full.metrics()
    rest.reset()
    assert rest.metrics() == make(4, VOID).metrics()
    assert not rest.needs_confidences


@pytest.mark.parametrize("make", MEASURES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 3)])
def test_void_only_image_has_no_score(make, shape):
    truth = np.full(shape, VOID, np.uint8)
    metrics = score(make(2, VOID), truth, np.zeros_like(truth))
    assert metrics == make(2, VOID).metrics()
    assert metrics.get("miou", [None] * 3) == [None] * 3
    assert metrics.get("pixels", [0] * 3) == [0] * 3
    assert metrics.get("boundary_iou") is None
    assert metrics.get("per_class", [None] * 2) == [None] * 2


def test_image_of_one_pixel_is_its_own_boundary():
    for curve in (make(2, VOID) for make in MEASURES[:2]):
        assert score(curve, [[1]], [[1]])["pixels"] == [0] * 3
    metrics = score(MEASURES[2](2, VOID), [[1]], [[1]])
    assert metrics["per_class"] == [None, 1] and metrics["boundary_iou"] == 1
    metrics = score(MEASURES[2](2, VOID), [[1]], [[0]])
    assert metrics["per_class"] == [0, 0] and metrics["boundary_iou"] == 0


def test_ignored_label_may_be_a_class():
    # ADE20K ignores 0; predicting it on a scored pixel is still a mistake.
    truth, prediction = [[0, 1, 1, 2, 2]], [[1, 0, 1, 2, 2]]
    curve = score(TrimapCurve(3, 0, (1, 2, 3)), truth, prediction)
    assert curve["pixels"] == [1, 2, 3]
    assert curve["pixel_accuracy"] == pytest.approx([0, 1 / 2, 2 / 3])
    # The IoU of class 1 is 1/2, of class 2 it is 1, and of class 0, only predicted, 0.
    assert curve["miou"] == pytest.approx([0, 1 / 4, 1 / 2])
    rims = score(TrimapCurve(3, 0, (1,), "classes"), truth, prediction)
    assert rims["pixels"] == [2] and rims["miou"] == [1]
    boundaries = score(BoundaryIoU(3, 0), truth, prediction)
    assert boundaries["per_class"] == [0, 1 / 2, 1]


def test_labels_out_of_range_are_void():
    stray, void = np.array([[[0, 0, i, 1, 1]] for i in (7, VOID)], np.uint8)
    prediction = np.array([[0, 0, 1, 1, 0]], np.int32)
    for make in MEASURES:
        expected = score(make(2, VOID), void, prediction)
        assert score(make(2, VOID), stray, prediction) == expected


def test_256_classes_are_supported():
    truth = np.array([[254, 254, 255, 0]], np.uint8)
    rims = score(TrimapCurve(256, 0, (1,), "classes"), truth, truth)
    assert rims["pixels"] == [2] and rims["miou"] == [1]
    boundaries = score(BoundaryIoU(256, 0), truth, truth)
    assert boundaries["per_class"] == [None] * 254 + [1, 1]


@pytest.mark.parametrize("widths", [(), (0, 1), (2, 1), (1, 1), (1, 2.5), (-1, 3)])
def test_invalid_widths_are_refused(widths):
    with pytest.raises(UserError, match=r"ascending integers .* received \("):
        TrimapCurve(2, VOID, widths)


def test_invalid_arguments_are_refused():
    with pytest.raises(UserError, match="void or classes; received 'both'"):
        TrimapCurve(2, VOID, around="both")
    with pytest.raises(UserError, match=r"must be positive; received -0\.1"):
        BoundaryIoU(2, VOID, -0.1)
