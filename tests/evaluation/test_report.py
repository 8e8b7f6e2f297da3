"""HTML reports, checked with a parser and a browser."""

import base64
import dataclasses
import hashlib
import html
import html.parser
import itertools
import json
import platform
import re
import shutil
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from html_pages import Page
from PIL import Image

import deeplab_tf
from deeplab_tf import visualize
from deeplab_tf.data.info import DatasetInfo, dataset_info
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.report import ScoredImage, write_report

EVIL = "<script>alert(\"Gänsefüßchen\")</script> & 'co'"
INFO = DatasetInfo("toys", ("floor", EVIL, "ball", "Bär"), ignore_label=9)
DISTINCT = visualize.use_distinct_colors(INFO)
# 100 pixels each of floor and evil, and no ball; bears are only predicted.
METRICS = {
    "images": 1234,
    "miou": 0.43210,
    "pixel_accuracy": 0.6,
    "frequency_weighted_iou": 0.45678,
    "iou_per_class": [0.5, 0.625, None, 0.0],
    "accuracy_per_class": [0.75, 0.8125, None, None],
    "f_score_per_class": [0.667, 0.769, None, 0.0],
    "confusion_matrix": [[70, 25, 0, 5], [17, 83, 0, 0], [0] * 4, [0] * 4],
    "protocol": {
        "output_stride": 16,
        "eval_scales": [0.5, 1.0],
        "add_flipped_images": True,
        "eval_crop_size": None,
        "split": "val",
        "checkpoint": f"/logs/{EVIL}/model.ckpt-7",
    },
}
MEASURED = {
    "robustness": {
        "clean": 0.8,
        "severities": [1, 3],
        "miou": {"fog": [0.7, 0.5], "snow": [0.6, 0.1]},
    },
    "calibration": {
        "bins": 2,
        "expected_calibration_error": 0.0432,
        "maximum_calibration_error": 0.2,
        "confidence": [None, 0.8],
        "accuracy": [None, 0.7],
        "pixels": [0, 200],
    },
    "boundary_iou": {
        "ratio": 0.02,
        "boundary_iou": 0.3456,
        "per_class": [0.4, 0.3, None, 0.0],
    },
    "trimap": {
        "around": "void",
        "widths": [1, 40],
        "miou": [None, 0.5],
        "pixel_accuracy": [None, 0.75],
        "pixels": [0, 2000],
    },
}
COMMAND = ["python", "eval.py", "--checkpoint_dir=my logs", f"--dataset={EVIL}"]


def write_page(metrics=METRICS, info=INFO, worst=(), best=(), command=COMMAND):
    # As read from a file.
    metrics = json.loads(json.dumps(metrics, allow_nan=False))
    write_report("ram://report.html", metrics, info, worst, best, command)
    with tf.io.gfile.GFile("ram://report.html") as file:
        return Page(file.read())


def make_scored_image(height=20, width=30, info=INFO, name=EVIL):
    random = np.random.RandomState(0)
    image = np.full((height, width, 3), random.randint(0, 256, 3), np.uint8)
    image[:, width // 2 :] = random.randint(0, 256, 3)
    truth = np.zeros((height, width), np.uint8)
    truth[: height // 2], truth[:, : width // 3] = 1, info.ignore_label
    prediction = np.zeros((height, width), np.int32)
    prediction[:, width // 2 :] = 3
    return ScoredImage(name, image, truth, prediction, 0.123456)


@pytest.fixture(scope="module")
def page():
    """A report with all sections."""
    image = make_scored_image()
    other = dataclasses.replace(image, name="good", miou=0.9)
    return write_page(METRICS | MEASURED, worst=[image], best=[other])


def test_report_loads_no_resources(page):
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base")
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert attributes.get("href", "#").startswith("#")
        assert not {"srcset", "poster", "background"} & set(attributes)
    for text in ("@import", "url(", "http:", "https:"):
        assert text not in page.source
    (policy,) = [a for a in page.all("meta") if "http-equiv" in a]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none';")
    # The only script is the one whose hash the policy allows.
    assert page.all("script") == [{}] and page.source.count("<script") == 1
    script = re.search("<script>(.*?)</script>", page.source, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["content"].endswith(f"script-src 'sha256-{digest}'")


def test_links_have_targets(page):
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert [link["href"] for link in page.all("a")] == [f"#{i}" for i in ids]
    assert len(set(ids)) == len(ids) == len(page.headings)


def test_images_decode_and_have_alternative_text(page):
    # Confusion matrix, curve, reliability, and four panels for each of two images.
    assert len(page.images) == 3 + 8
    for attributes, pixels in page.images:
        assert attributes["alt"]
        shape = float(attributes["height"]) / float(attributes["width"])
        assert pixels.shape[0] / pixels.shape[1] == pytest.approx(shape, rel=0.01)
    assert sum(EVIL in attributes["alt"] for attributes, _ in page.images) == 4


def test_sections_are_in_order(page):
    scores = ["Classes", "Most frequent confusions", "Confusion matrix"]
    measured = ["Near boundaries", "Boundary IoU", "Calibration", "Robustness"]
    last = ["Protocol", "How to reproduce"]
    images = ["Worst images", *scores, *measured, "Best images"]
    assert page.headings == [*images, *last]
    plain = write_page()
    assert plain.headings == [*scores, *last]
    assert len(plain.images) == 1


def test_headline_shows_the_scores(page):
    assert "<title>Evaluation on toys val</title>" in page.source
    shown = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page.source))
    assert shown == {
        "mIoU": "43.21%",
        "Pixel accuracy": "60.00%",
        "Frequency-weighted IoU": "45.68%",
        "Images": "1,234",
    }


def test_protocol_starts_with_checkpoint_and_split(page):
    start = page.rows.index(["checkpoint", f"/logs/{EVIL}/model.ckpt-7"])
    assert page.rows[start:] == [
        ["checkpoint", f"/logs/{EVIL}/model.ckpt-7"],
        ["split", "val"],
        ["output stride", "16"],
        ["eval scales", "0.5, 1.0"],
        ["add flipped images", "yes"],
        ["eval crop size", "–"],  # noqa: RUF001
    ]


def test_class_table_shows_all_scores(page):
    none = "–"  # noqa: RUF001
    columns = ["IoU, %", "Accuracy, %", "F-score, %", "Boundary IoU, %", "Pixels"]
    start = page.rows.index(["Class", *columns, "Often predicted as"])
    # The worst come first.
    assert page.rows[start + 1 : start + 5] == [
        ["Bär", "0.00", none, "0.00", "0.00", "0", none],
        ["floor", "50.00", "75.00", "66.70", "40.00", "100", f"{EVIL} 25% Bär 5%"],
        [EVIL, "62.50", "81.25", "76.90", "30.00", "100", "floor 17%"],
        ["ball", "absent", none, none, none, "0", none],
    ]
    # A bar for each class that is not absent.
    bars = re.findall(r'<i style="width: (.*?)%"', page.source)
    assert bars == ["0.0", "50.0", "62.5"]
    colors = re.findall(r'<th scope="row"><i .*?rgb(\(.*?\))', page.source)
    shown = DISTINCT.colors
    assert colors == [str(shown[label]) for label in (3, 0, 1, 2)]


def test_boundary_column_is_omitted_without_scores():
    header = ["Class", "IoU, %", "Accuracy, %", "F-score, %", "Pixels"]
    assert write_page().rows[0] == [*header, "Often predicted as"]


def test_confusions_are_described(page):
    assert (
        f"floor predicted as {EVIL}: 25 pixels, 25.00% of floor "
        f"{EVIL} predicted as floor: 17 pixels, 17.00% of {EVIL} "
        "floor predicted as Bär: 5 pixels, 5.00% of floor"
    ) in page.text
    assert page.source.count("<li>") == 3


def test_ten_most_frequent_confusions_are_listed():
    info = DatasetInfo("many", tuple("abcd"))
    counts = np.arange(16).reshape(4, 4)
    page = write_page(METRICS | {"confusion_matrix": counts.tolist()}, info)
    # Off the diagonal 14, 13, 12, 11, 9, 8, 7, 6, 4, 3; then 2 and 1, not shown.
    pixels = re.findall(r": (\d+) pixels", page.text)
    assert pixels == "14 13 12 11 9 8 7 6 4 3".split()
    # 14 of 12 + 13 + 14 + 15 = 54.
    assert "d predicted as c: 14 pixels, 25.93% of d" in page.text


def test_report_without_confusions_says_so():
    page = write_page(METRICS | {"confusion_matrix": np.eye(4, dtype=int).tolist()})
    assert "There are no confusions." in page.text and "<li>" not in page.source


def test_optional_measurements_are_shown(page):
    none = "–"  # noqa: RUF001
    for row in (
        ["1", none, none, "0"],
        ["40", "50.00", "75.00", "2,000"],
        ["mIoU, %", "Severity 1", "Severity 3", "Mean"],
        ["fog", "70.00", "50.00", "60.00"],
        ["snow", "60.00", "10.00", "35.00"],
        ["mean", "65.00", "30.00", "47.50"],
    ):
        assert row in page.rows
    for text in (
        "in bands around unlabelled pixels",
        "Mean over classes: 34.56%",
        "with a width of 2.00% of the image diagonal",
        "Expected calibration error 4.32%, maximum 20.00%",
        "mIoU on clean images: 80.00%",
    ):
        assert text in page.text


def test_trimap_around_class_boundaries_is_described():
    trimap = MEASURED["trimap"] | {"around": "classes"}
    page = write_page(METRICS | {"trimap": trimap})
    assert "in bands around boundaries between classes" in page.text


def test_images_are_shown_with_truth_prediction_and_errors(page):
    image = make_scored_image()
    shown = [pixels for _, pixels in page.images[:4]]
    difference = shown[0].astype(int) - image.image
    assert shown[0].shape == (20, 30, 3) and np.abs(difference).mean() < 3
    for pixels, expected in zip(
        shown[1:],
        (
            visualize.colorize(image.truth, DISTINCT),
            visualize.colorize(image.prediction, DISTINCT),
            visualize.error_map(image.truth, image.prediction, DISTINCT),
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(pixels, expected)
    captions = re.findall("<figcaption>(.*?)</figcaption>", page.source)
    assert captions == ["Image", "Truth", "Prediction", "Errors"] * 2
    assert f"{EVIL} mIoU 12.35%" in page.text and "good mIoU 90.00%" in page.text


def test_legend_names_the_largest_class_first(page):
    # Of 20 x 30 pixels, 300 are predicted as bear and 300 as floor; the truth has
    # another 200 of floor, and 200 of evil.
    legend = page.source.split('class="legend"')[1].split("</div>")[0]
    names = re.findall("</i>(.*?)</span>", legend)
    assert list(map(html.unescape, names)) == ["floor", "Bär", EVIL]


def test_legend_of_many_classes_names_the_largest():
    # As in ADE20K, whose class 0 is not scored.
    info = DatasetInfo("many", tuple(f"class {i}" for i in range(20)), ignore_label=0)
    labels = np.repeat(np.arange(20), np.arange(20, 0, -1))[None]
    image = np.zeros((*labels.shape, 3), np.uint8)
    many = ScoredImage("many", image, labels.astype(np.uint8), labels, 1.0)
    page = write_page(make_metrics(info), info, worst=[many])
    legend = page.source.split('class="legend"')[1].split("</div>")[0]
    assert re.findall("</i>(.*?)</span>", legend) == list(info.class_names[1:13])
    assert "and 7 more" in legend


@pytest.mark.parametrize(
    ("size", "small"), [((1000, 1920), (250, 480)), ((963, 2), (480, 1))]
)
def test_large_images_are_shrunk_without_mixing_labels(size, small):
    page = write_page(worst=[make_scored_image(*size)])
    panels = [pixels for _, pixels in page.images[:4]]
    assert {pixels.shape for pixels in panels} == {(*small, 3)}
    colors = {tuple(color) for color in panels[1].reshape(-1, 3).tolist()}
    assert colors <= {*DISTINCT.colors[:2], (224, 224, 192)}


def test_image_without_a_score_has_a_dash():
    page = write_page(
        worst=[dataclasses.replace(make_scored_image(), miou=float("nan"))]
    )
    assert f"{EVIL} mIoU –%" in page.text  # noqa: RUF001


def test_names_are_escaped(page):
    # In protocol and class table, as a typical confusion, in three frequent ones, an
    # image and two legends.
    assert page.text.count(EVIL) == 9 and "Bär" in page.source


def test_command_can_be_pasted_into_a_shell(page):
    line = html.unescape(re.search(r"<pre>(.*?)</pre>", page.source, re.S)[1])
    words = subprocess.run(
        ["sh", "-c", f'set -- {line}; printf "%s\\n" "$@"'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert words == COMMAND
    assert (
        f"With deeplab_tf {deeplab_tf.__version__}, TensorFlow {tf.__version__}, "
        f"Keras {keras.__version__}, Python {platform.python_version()}."
    ) in page.text


def test_undecodable_command_line_is_written():
    # As Python decodes the name of a folder in Latin-1.
    page = write_page(command=["eval.py", "--dir=B\udce4r"])
    assert "eval.py '--dir=B?r'" in page.text


def test_failure_keeps_the_earlier_report():
    page = write_page()
    assert not tf.io.gfile.glob("ram://report.html.*")
    with pytest.raises(
        UserError, match="the metrics have 4 classes, but ade20k has 151"
    ):
        write_page(info=dataset_info("ade20k"))
    with pytest.raises(KeyError, match="around"):
        write_page(METRICS | {"trimap": {"widths": [1]}})
    with tf.io.gfile.GFile("ram://report.html") as file:
        assert file.read() == page.source


def make_metrics(info):
    """Returns metrics with a tenth of each class predicted as the next class."""
    count = info.num_classes
    counts = 90 * np.eye(count, dtype=int) + 10 * np.eye(count, k=1, dtype=int)
    scores = [0.8] * count
    return METRICS | {
        "iou_per_class": scores,
        "accuracy_per_class": scores,
        "f_score_per_class": scores,
        "confusion_matrix": counts.tolist(),
    }


def test_150_classes_are_shown():
    info = dataset_info("ade20k_150")
    page = write_page(make_metrics(info), info)
    names, scores = info.class_names, ["80.00"] * 3
    rows = [
        [name, *scores, "100", f"{following} 10%"]
        for name, following in itertools.pairwise(names)
    ]
    # The last class has no next one, and 90 pixels.
    rows.append([names[-1], *scores, "90", "–"])  # noqa: RUF001
    assert page.rows[1:151] == rows
    assert len(page.source) < 1e6


def test_report_with_24_images_is_small(voc_root):
    info = dataset_info("pascal_voc_seg")
    names = (voc_root / "ImageSets/Segmentation/val.txt").read_text().split()[:24]
    images = []
    for name in names:
        image = np.array(Image.open(voc_root / f"JPEGImages/{name}.jpg"))
        truth = np.array(Image.open(voc_root / f"SegmentationClass/{name}.png"))
        prediction = np.roll(truth, 5, 1).astype(np.int32)
        prediction[prediction == info.ignore_label] = 15
        images.append(ScoredImage(name, image, truth, prediction, 0.5))
    page = write_page(make_metrics(info), info, worst=images[:12], best=images[12:])
    assert len(page.images) == 1 + 4 * 24
    assert len(page.source) < 5e6


_FRAME = """
<body><iframe width="{width}" height="800" style="border: 0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const page = frames[0].document;
  const result = (() => {{ {code} }})();
  document.body.textContent = JSON.stringify(result);
}};
</script>
"""
_MEASURE = """
return [frames[0].innerWidth, page.documentElement.scrollWidth, page.images.length];
"""
_SLIDE = """
const slider = page.querySelector("input[type=range]");
const [truth, prediction] = page.querySelectorAll(".stack img + img");
const state = () => [
  slider.getAttribute("aria-valuetext"), truth.style.opacity, prediction.style.opacity,
];
const states = [state()];
for (const value of [0.5, 1, 2]) {
  slider.value = value;
  slider.dispatchEvent(new Event("input"));
  states.push(state());
}
page.querySelector(".marks button").click();
states.push(state());
const stack = page.querySelector(".stack"), box = stack.getBoundingClientRect();
const readouts = [0.9, 0.1].map((share) => {
  const position = {clientX: box.left + share * box.width, clientY: box.top + 1};
  stack.dispatchEvent(new PointerEvent("pointermove", position));
  return page.querySelector(".readout").textContent;
});
return [slider.getAttribute("aria-label"), slider.tabIndex, states, readouts];
"""


def run_in_browser(page, folder, code, width=390):
    """Returns the result of JavaScript with `page`, the document, in scope."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    browser = browser or pytest.skip(f"needs one of {', '.join(names)}")
    # In a frame, because the window of a browser cannot be as narrow as a phone.
    text = _FRAME.format(width=width, page=html.escape(page.source), code=code)
    (folder / "frame.html").write_text(text)
    result = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",  # unavailable to root, as in containers
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            (folder / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return json.loads(
        html.unescape(re.search(r"<body>(.*)</body>", result.stdout, re.S)[1])
    )


def test_slider_fades_the_image_into_truth_and_prediction(tmp_path):
    image = make_scored_image(name="photo")
    label, tab, states, readouts = run_in_browser(
        write_page(worst=[image]), tmp_path, _SLIDE
    )
    assert (label, tab) == ("Image, Truth, Prediction of photo", 0)
    assert states == [
        ["Image", "0", "0"],
        ["Image, 50% Truth", "0.5", "0"],
        ["Truth", "1", "0"],
        ["Prediction", "1", "1"],
        ["Image", "0", "0"],
    ]
    # In the first row, on the right and where nothing is scored.
    assert readouts == [
        f"Truth: {EVIL} · Prediction: Bär",
        "Truth: not scored · Prediction: floor",
    ]


def test_narrow_image_fits_the_screen(tmp_path):
    code = """
    const stack = page.querySelector(".stack"), box = stack.getBoundingClientRect();
    return [box.height, ...[15, 3].map((offset) => {
      const position = {clientX: box.left + offset, clientY: box.top + 1};
      stack.dispatchEvent(new PointerEvent("pointermove", position));
      return page.querySelector(".readout").textContent;
    })];
    """
    image = make_scored_image(900, 30, name="tall")
    height, *readouts = run_in_browser(write_page(worst=[image]), tmp_path, code)
    # 16 x 480 pixels, drawn 640 pixels (40rem) high: the offsets are pixels 11 and 2.
    assert height == 640
    assert readouts == [
        f"Truth: {EVIL} · Prediction: Bär",
        "Truth: not scored · Prediction: floor",
    ]


def test_page_does_not_scroll_sideways(tmp_path):
    long = "x" * 150
    info = DatasetInfo(long, (long, f"{long} y", *map(str, range(58))))
    scores = make_metrics(info) | MEASURED
    scores["boundary_iou"] = MEASURED["boundary_iou"] | {"per_class": [0.5] * 60}
    mious = {long: [0.5] * 5, "fog": [0.5] * 5}
    severities = [1, 2, 3, 4, 5]
    robustness = {"clean": 0.5, "severities": severities, "miou": mious}
    scores |= {"robustness": robustness, "protocol": {"checkpoint": long}}
    images = [
        make_scored_image(300, 1000, info, long),
        make_scored_image(1000, 300, info),
    ]
    page = write_page(scores, info, images, [make_scored_image()], [*COMMAND, long])
    count = len(page.images)
    for width in (390, 1280, 1920):
        inner, scrolled, images = run_in_browser(page, tmp_path, _MEASURE, width)
        assert (inner, images) == (width, count)
        assert scrolled <= inner


def write_page_of(text):
    """Returns a report with `text` in every field that may contain text."""
    info = DatasetInfo(text, (text, f"{text}1", f"{text}2", f"{text}3"), 9)
    measured = MEASURED | {
        "robustness": MEASURED["robustness"] | {"miou": {text: [0.7, 0.5]}},
        "trimap": MEASURED["trimap"] | {"around": text},
    }
    protocol = {"split": text, "checkpoint": text, f"z{text}": [text, {text: text}]}
    metrics = METRICS | measured | {"protocol": protocol}
    image = make_scored_image(info=info, name=text)
    return write_page(metrics, info, [image], [image], [text, f"--dataset={text}"])


def test_hostile_text_is_escaped():
    text = " ".join(
        [
            '" onload="alert(1)" x=\'',
            "' onload='alert(1)",
            "</style></title></pre><img src=x onerror=alert(1)>",
            "</td></th></tr></table><a href='javascript:alert(1)'>",
            "]]><svg/onload=alert(1)>",
            "--><!-- &lt;b&gt; & &#60;i&#62;",
            "<script>alert(1)</script>",
        ]
    )
    hostile = write_page_of(text)
    elements, expected = (
        [(tag, list(attributes)) for tag, attributes in page.tags]
        for page in (hostile, write_page_of("plain"))
    )
    assert elements == expected
    # Texts are unchanged: names of classes and images, protocol, attributes.
    assert ["checkpoint", text] in hostile.rows
    assert [a["alt"] for a in hostile.all("img")].count(text) == 2
    assert f"Truth of {text}" in [a["alt"] for a in hostile.all("img")]
