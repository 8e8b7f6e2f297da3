"""Checkpoints of PyTorch projects, by name."""

import dataclasses
import hashlib
import http.server
import json

import numpy as np
import pytest
from fake_hub import FakeHub
from golden_case import FOLDER
from loopback import QuietHandler, serve
from pytorch_networks import procedural_weights, read_case
from torch_files import make_tensor, write_safetensors, write_zip

from deeplab_tf.checkpoints.pretrained import find_weights, from_pretrained
from deeplab_tf.checkpoints.pytorch.layouts import convert_state_dict
from deeplab_tf.checkpoints.restore import tf1_variables
from deeplab_tf.checkpoints.zoo import ZOO, page, require_checkpoint
from deeplab_tf.checkpoints.zoo.pytorch import (
    PYTORCH_ZOO,
    find_address,
    find_sha256,
)
from deeplab_tf.errors import UserError
from deeplab_tf.programs.zoo import describe_zoo

RESNET = "deeplabv3_resnet50_coco_with_voc_labels_v1"
ADE20K = "deeplabv3plus_r101-d8_512x512_160k_ade20k"
HUGGING_FACE = "deeplabv3_mobilenet_v2_1.0_513"
# Digits of SHA-256 in the file names of these projects.
HASHED = {"torchvision": 4, "MMSegmentation": 14, "Hugging Face": 0}


def test_names_and_addresses_are_distinct():
    rows = PYTORCH_ZOO.values()
    assert not set(PYTORCH_ZOO) & set(ZOO)
    assert len({row.source for row in rows}) == len(rows) == 19
    for project, count in HASHED.items():
        found = [row for row in rows if row.project == project and row.sha256]
        assert len(found) == count


def test_rows_have_the_classes_of_the_model():
    assert PYTORCH_ZOO[RESNET].class_names[:2] == ("background", "aeroplane")
    names = PYTORCH_ZOO[ADE20K].class_names
    assert (len(names), names[0]) == (150, "wall")
    counts = {len(row.class_names) for row in PYTORCH_ZOO.values()}
    assert counts == {19, 21, 150}


def test_addresses_are_published_or_of_a_mirror(monkeypatch):
    monkeypatch.delenv("DEEPLAB_TF_ZOO", raising=False)
    file = "deeplabv3_resnet50_coco-cd0a2569.pth"
    published = f"https://download.pytorch.org/models/{file}"
    assert find_address(RESNET) == published
    assert find_sha256(published) == "cd0a2569"
    handle = "hf://google/deeplabv3_mobilenet_v2_1.0_513"
    assert find_address(HUGGING_FACE) == handle
    monkeypatch.setenv("DEEPLAB_TF_ZOO", "http://mirror/")
    assert find_address(RESNET) == f"http://mirror/{file}"
    assert find_sha256(f"http://mirror/{file}") == "cd0a2569"
    assert find_address(HUGGING_FACE) == handle
    assert find_address("unknown") is None
    assert find_sha256("https://download.pytorch.org/x.pth") == ""


def test_rows_match_torchvision():
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    for name, kind in (
        ("deeplabv3_resnet50", "DeepLabV3_ResNet50_Weights"),
        ("deeplabv3_resnet101", "DeepLabV3_ResNet101_Weights"),
        ("deeplabv3_mobilenet_v3_large", "DeepLabV3_MobileNet_V3_Large_Weights"),
        ("lraspp_mobilenet_v3_large", "LRASPP_MobileNet_V3_Large_Weights"),
    ):
        theirs = getattr(segmentation, kind).COCO_WITH_VOC_LABELS_V1
        row = PYTORCH_ZOO[f"{name}_coco_with_voc_labels_v1"]
        [figures] = theirs.meta["_metrics"].values()
        assert row.source == theirs.url
        assert row.mebibytes == theirs.meta["_file_size"]
        assert (row.miou, row.pixel_accuracy) == tuple(figures.values())
        assert row.class_names[1:20] == tuple(theirs.meta["categories"][1:20])


def test_list_and_suggestions_include_the_rows():
    text = "\n".join(describe_zoo().values())
    assert (
        f"{RESNET} (torchvision, BSD-3-Clause, 161 MiB)\n"
        "  trained on COCO, classes of PASCAL VOC; COCO val2017, shorter side 520: "
        "mIoU 66.4%, pixel accuracy 92.4%\n"
    ) in text
    assert (
        f"{ADE20K} (MMSegmentation, Apache-2.0)\n"
        "  trained on ade20k train; ade20k val, shorter side 512: mIoU 45.47%, with 6 "
        "scales and mirrored images 46.35%\n"
    ) in text
    require_checkpoint(RESNET)
    with pytest.raises(UserError, match=f"similar: .*, {RESNET}"):
        require_checkpoint("deeplabv3_resnet50")


def test_page_lists_untested_downloads():
    row = dataclasses.replace(PYTORCH_ZOO[HUGGING_FACE], miou=70.0)
    cells = page._format_pytorch_row(row)
    assert cells[0] == f"`{HUGGING_FACE}`"
    assert cells[5:] == ["21", "70", "", "", "not tried"]


# ---- Loading by name, with procedural weights.


def assert_loaded(name, state, **options):
    """Asserts that a model loaded by name has the weights of a state dict."""
    expected = convert_state_dict(state, {}, name)
    model = from_pretrained(name, **options)
    assert model.model_config.num_classes == expected.config.num_classes
    found = tf1_variables(model)
    assert found.keys() == expected.arrays.keys()
    for key, array in expected.arrays.items():
        np.testing.assert_array_equal(found[key], array)


class Files(QuietHandler, http.server.BaseHTTPRequestHandler):
    """Serves `files` of its server by path."""

    def do_GET(self):
        content = self.server.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def write_state(path, state):
    """Writes a state dict in the format of torch.save and returns the content."""
    tensors = {name: make_tensor(x.shape, key=name) for name, x in state.items()}
    storages = {name: x.tobytes() for name, x in state.items()}
    return write_zip(path, tensors, storages).read_bytes()


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    """A server of a mirror, and a temporary cache."""
    monkeypatch.setenv("DEEPLAB_TF_CACHE", str(tmp_path / "cache"))
    with serve(Files) as server:
        monkeypatch.setenv("DEEPLAB_TF_ZOO", server.url)
        yield server


def test_checkpoint_is_downloaded_and_converted_by_name(mirror, monkeypatch, tmp_path):
    shapes, _ = read_case(FOLDER / "pytorch" / "torchvision_lraspp.npz")
    state = procedural_weights(shapes)
    content = write_state(tmp_path / "made.pth", state)
    name = "lraspp_mobilenet_v3_large_coco_with_voc_labels_v1"
    published = PYTORCH_ZOO[name].source.rpartition("/")[2]
    mirror.files = {f"/{published}": content}
    with pytest.raises(UserError, match=f"{published} has .* but d234d4ea was publish"):
        from_pretrained(name)  # not the published file
    digest = hashlib.sha256(content).hexdigest()
    source = f"https://download.pytorch.org/models/x-{digest[:8]}.pth"
    row = dataclasses.replace(PYTORCH_ZOO[name], source=source)
    monkeypatch.setitem(PYTORCH_ZOO, name, row)
    mirror.files = {f"/x-{digest[:8]}.pth": content}
    assert_loaded(name, state)
    mirror.files = {}  # from the cache
    assert find_weights(name).endswith(f"x-{digest[:8]}.pth")


def test_path_takes_precedence_over_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / RESNET).mkdir()
    with pytest.raises(UserError, match="no checkpoint"):
        from_pretrained(RESNET)
    assert f"note: using {tmp_path / RESNET}, not" in capsys.readouterr().out


def test_model_on_hugging_face_is_converted_by_name(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    shapes, _ = read_case(FOLDER / "pytorch" / "transformers_mobilenet_v2_05.npz")
    state = procedural_weights(shapes)
    tensors = {n: ("F32", list(x.shape), x.tobytes()) for n, x in state.items()}
    path = write_safetensors(tmp_path / "model.safetensors", tensors)
    described = json.dumps({"output_stride": 8}).encode()
    files = {path.name: path.read_bytes(), "config.json": described}
    repository = PYTORCH_ZOO[HUGGING_FACE].source.removeprefix("hf://")
    template = "/{repo_id}/resolve/{revision}/{filename}"
    with serve(FakeHub) as server:
        server.repositories = {repository: files}
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template
        )
        assert_loaded(HUGGING_FACE, state, cache_dir=str(tmp_path / "cache"))
