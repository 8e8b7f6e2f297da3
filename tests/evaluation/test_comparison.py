"""Sections of the report that compare two evaluations."""

import json

import pytest

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.comparison import make_comparison_sections, read_metrics

INFO = DatasetInfo("toys", ("floor", "ball", "bear"))
BEFORE = {
    "path": "old/metrics.json",
    "miou": 0.5,
    "iou_per_class": [0.8, 0.5, None],
    "class_names": list(INFO.class_names),
    "protocol": {"checkpoint": "a", "split": "val", "eval_scales": [1.0]},
    "miou_per_image": {"a": 0.5, "b": 0.5, "c": None, "d": 0.5, "gone": 0.1},
}
NOW = BEFORE | {
    "miou": 0.55,
    "iou_per_class": [0.9, 0.45, 0.2],
    "protocol": {"checkpoint": "b", "split": "val", "eval_scales": [0.5, 1.0]},
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
        "The eval scales differs: [0.5, 1.0], before [1.0]."
    )
    assert [title for title, *_ in images] == ["Worse images", "Better images"]
    worse, better = (section["rows"] for _, _, section in images)
    assert worse == [("a", None, ["25.00", "50.00", "-25.00"])]
    assert better == [("b", None, ["75.00", "50.00", "+25.00"])]
    text = images[0][2]["text"]
    assert text == "Of 3 common images, 1 is better and 1 is worse."


def test_metrics_without_image_scores_are_compared_by_class():
    old = {name: value for name, value in BEFORE.items() if name != "miou_per_image"}
    _, (title, kind, text) = make_comparison_sections(NOW, old, INFO)
    assert (title, kind) == ("Changes by image", "note")
    assert "because old/metrics.json has no miou_per_image" in text
    assert not make_comparison_sections(NOW, None, INFO)


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
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"--compare={path} {message}"):
        read_metrics(str(path), INFO.class_names)
