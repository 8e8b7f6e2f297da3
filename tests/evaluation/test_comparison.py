"""Sections of the report that compare two evaluations."""

import json

import pytest

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.comparison import make_comparison_sections, read_metrics

INFO = DatasetInfo("toys", ("floor", "ball", "bear"))
BEFORE = {
    "path": "old/metrics.json",
    "images": 5,
    "miou": 0.5,
    "iou_per_class": [0.8, 0.5, None],
    "class_names": list(INFO.class_names),
    "protocol": {"checkpoint": "a", "split": "val", "eval_scales": [1.0]},
    "miou_per_image": {"a": 0.5, "b": 0.5, "c": None, "d": 0.5, "gone": 0.1},
}
NOW = BEFORE | {
    "images": 4,
    "miou": 0.55,
    "iou_per_class": [0.9, 0.45, 0.2],
    "protocol": {"checkpoint": "b", "split": "val", "eval_scales": (0.5, 1.0)},
    "miou_per_image": {"a": 0.25, "b": 0.75, "c": 0.4, "d": 0.5, "new": 0.3},
}


def test_changes_are_sorted_from_worse_to_better():
    (title, _, classes), *images = make_comparison_sections(NOW, BEFORE, INFO)
    assert title == "Changes by class"
    rows = [(name or cls["name"], *values) for name, cls, values in classes["rows"]]
    none = "–"  # noqa: RUF001
    assert rows == [
        ("mIoU", "55.00", "50.00", "+5.00"),
        ("ball", "45.00", "50.00", "-5.00"),
        ("floor", "90.00", "80.00", "+10.00"),
        ("bear", "20.00", none, none),
    ]
    assert classes["text"] == (
        "Compared with old/metrics.json. "
        "Differences: images 4 (before 5); eval scales 0.5, 1.0 (before 1.0)."
    )
    assert [title for title, *_ in images] == [
        "Images that got worse",
        "Images that got better",
    ]
    worse, better = (section["rows"] for _, _, section in images)
    assert worse == [("a", None, ["25.00", "50.00", "-25.00"])]
    assert better == [("b", None, ["75.00", "50.00", "+25.00"])]
    texts = [section["text"] for _, _, section in images]
    assert texts == ["1 of 3 images scored in both evaluations."] * 2


def test_metrics_without_image_scores_are_compared_by_class():
    old = {name: value for name, value in BEFORE.items() if name != "miou_per_image"}
    _, (title, kind, text) = make_comparison_sections(NOW, old, INFO)
    assert (title, kind) == ("Changes by image", "note")
    assert "because old/metrics.json has no miou_per_image" in text
    assert not make_comparison_sections(NOW, None, INFO)


def test_settings_that_only_their_type_distinguishes_are_equal():
    """The protocol has tuples, its file has lists, and older files lack settings."""
    now = BEFORE | {
        "protocol": {"split": "val", "eval_scales": (1.0,), "window_size": None}
    }
    (_, _, classes), *_ = make_comparison_sections(now, BEFORE, INFO)
    assert classes["text"] == "Compared with old/metrics.json."


@pytest.mark.parametrize(
    "scores, text",
    [
        ({"new": 0.5}, "None of 0 images"),
        # 0.004 points, which is shown as 0.00.
        ({"a": 0.49996}, "None of 1 image"),
    ],
)
def test_images_without_changes_are_not_listed(scores, text):
    sections = make_comparison_sections(NOW | {"miou_per_image": scores}, BEFORE, INFO)
    assert sections[1] == (
        "Changes by image",
        "note",
        f"{text} scored in both evaluations got better or worse.",
    )


def test_tiny_changes_are_zero():
    now = NOW | {"miou": 0.49996}
    classes = make_comparison_sections(now, BEFORE, INFO)[0][2]
    assert classes["rows"][0][2][2] == "+0.00"


def test_fifteen_largest_changes_are_listed():
    before, now = ({str(i): i * x for i in range(1, 21)} for x in (0.04, 0.02))
    old, new = ({**BEFORE, "miou_per_image": x} for x in (before, now))
    table = make_comparison_sections(new, old, INFO)[1][2]
    assert [name for name, *_ in table["rows"]] == list(map(str, range(20, 5, -1)))
    assert table["text"] == (
        "20 of 20 images scored in both evaluations. The 15 largest changes are listed."
    )


@pytest.mark.parametrize(
    "name, value",
    [
        ("miou", "0.5"),
        ("miou", float("nan")),
        ("miou", 50),
        ("iou_per_class", [0.5, 0.5]),
        ("iou_per_class", [0.5, 0.5, "x"]),
        ("iou_per_class", 0.5),
        ("protocol", ["split"]),
        ("miou_per_image", [0.5]),
        ("miou_per_image", {"a": [0.5]}),
    ],
)
def test_invalid_values_are_refused(tmp_path, name, value):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(BEFORE | {name: value}))
    with pytest.raises(UserError, match=f"has an invalid {name}, .*; give an"):
        read_metrics(str(path), INFO.class_names)


def test_valid_values_are_read(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(BEFORE))
    assert read_metrics(str(path), INFO.class_names) == BEFORE | {"path": str(path)}


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot be read; give the metrics.json of an evaluation"),
        ("{", "is not JSON"),
        ("[]", "lacks miou; give the metrics.json that eval.py wrote"),
        (json.dumps({"miou": 0.5}), "lacks iou_per_class"),
        (
            json.dumps(BEFORE | {"class_names": ["a", "b"]}),
            "has the classes a, b; this evaluation has floor, ball, bear",
        ),
        (json.dumps(BEFORE | {"class_names": None}), "has the classes –;"),  # noqa: RUF001
        (json.dumps(BEFORE | {"class_names": [1, None]}), "has the classes 1, –;"),  # noqa: RUF001
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"--compare={path} {message}"):
        read_metrics(str(path), INFO.class_names)
